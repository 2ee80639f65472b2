"""`mx.Classifier`: what goes in, what comes out, and in which order."""

import io
import json
import math
import warnings
from itertools import count, islice

import numpy as np
import pytest
import torch
from answering import LABELS, image_model, pictures, text_model, texts, tokenizer_in

import multiexit as mx
from multiexit.data import image_files
from multiexit.data.text import TextDataset
from multiexit_runner import choosing

POLICY = mx.MaxProb(0.6)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizer_in(tmp_path_factory.mktemp("words"))


def wanted(model, tokenizer, rows, policy):
    """Answers one row at a time, by `model.predict` and the formulas written out."""
    answers = []
    for row in rows:
        pair = row if isinstance(row, tuple) else (row,)
        inputs = tokenizer(*pair, truncation=True, max_length=16, return_tensors="pt")
        (logits_C,), (exit,) = model.predict(policy, **inputs)
        z = logits_C.double().tolist()
        if model.problem == "regression":
            said = {"value": z[0]}
        elif model.problem == "multi-label":
            p = {name: 1 / (1 + math.exp(-value)) for name, value in zip(LABELS, z, strict=True)}
            said = {"labels": [name for name in LABELS if p[name] > 0.5], "scores": p}
        else:
            total = sum(map(math.exp, z))
            p = {name: math.exp(value) / total for name, value in zip(LABELS, z, strict=True)}
            best = max(p, key=lambda name: p[name])
            said = {"label": best, "score": p[best], "scores": p}
        answers.append({**said, "exit": int(exit), "layers": model.exits[int(exit)] + 1})
    return answers


def same(got, expected):
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert list(one) == list(other)
        for key in one:
            numbers = key in ("score", "scores", "value")
            assert one[key] == (pytest.approx(other[key], abs=1e-4) if numbers else other[key])


@pytest.mark.filterwarnings("ignore:inputs")  # that fill all tokens
@pytest.mark.parametrize("problem", ["classification", "multi-label", "regression"])
@pytest.mark.parametrize("pairs", [False, True], ids=["texts", "pairs"])
def test_answers_are_those_of_one_text_at_a_time(problem, pairs, tokenizer):
    model = text_model(tokenizer, problem, pairs, 1 if problem == "regression" else 3)
    policy = mx.Patience(1, tolerance=0.8) if problem == "regression" else POLICY
    rows = list(zip(texts(45), texts(45, 1), strict=True)) if pairs else texts(45)
    expected = wanted(model, tokenizer, rows, policy)
    assert len({answer["exit"] for answer in expected}) > 1
    classify = mx.Classifier(model, tokenizer, policy)
    for size in (1, 4, 32):
        same(classify(rows, batch_size=size), expected)
    same(list(classify(iter(rows), batch_size=4)), expected)
    same([classify(rows[7])], [expected[7]])
    assert json.loads(json.dumps(classify(rows[0]))) == classify(rows[0])
    if pairs:
        named = {"text": rows[3][0], "text_pair": rows[3][1]}
        assert classify([named]) == classify([rows[3]]) == classify([list(rows[3])])
    else:
        assert classify(np.array(rows[:3])) == classify(rows[:3])
        assert classify([]) == []


def test_policies_and_top_k_are_per_call(tokenizer):
    model = text_model(tokenizer)
    model.policy = mx.FixedExit(1)
    classify, rows = mx.Classifier(model, tokenizer), texts(9)
    for policy, text in ((POLICY, "max-prob=0.6"), (mx.Patience(2), "patience=2")):
        same(classify(rows, policy=text), wanted(model, tokenizer, rows, policy))
    same(classify(rows), wanted(model, tokenizer, rows, mx.FixedExit(1)))
    full = classify(rows)
    for top in (1, 2, 3):
        for answer, whole in zip(classify(rows, top_k=top), full, strict=True):
            assert list(answer["scores"].items()) == list(whole["scores"].items())[:top]
    assert all(answer["score"] == max(answer["scores"].values()) for answer in full)
    sizes = {"top_k": np.int64(2), "batch_size": np.int64(4)}
    same(classify(rows, **sizes), classify(rows, top_k=2))
    engine = mx.Engine(model, POLICY)
    assert mx.Classifier(engine, tokenizer)(rows) == classify(rows, policy=POLICY)


def test_a_folder_answers_like_the_model_and_without_a_policy_in_full(tokenizer, tmp_path):
    model, rows = text_model(tokenizer), texts(5)
    model.save_pretrained(tmp_path / "run" / "model", tokenizer)
    classify = mx.Classifier.from_pretrained(tmp_path / "run", device="cpu")
    with pytest.warns(UserWarning, match="saved without a policy"):
        answers = classify(rows)
    same(answers, wanted(model, tokenizer, rows, mx.FixedExit(3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert classify(rows) == answers
        classify = mx.Classifier.from_pretrained(tmp_path / "run", "max-prob=0.6", "cpu")
        same(classify(rows), wanted(model, tokenizer, rows, POLICY))


def test_a_folder_with_a_tokenizer_reads_texts_without_being_told(tokenizer, tmp_path):
    model, rows = text_model(tokenizer), texts(5)
    model.preprocessing, model.policy = {}, POLICY
    model.save_pretrained(tmp_path, tokenizer)
    classify = mx.Classifier.from_pretrained(tmp_path, device="cpu")
    same(classify(rows), wanted(model, tokenizer, rows, POLICY))


def test_long_texts_are_cut_as_in_training_and_it_is_said_once(tokenizer):
    model, rows = text_model(tokenizer), [*texts(40), "the cat " * 50]
    classify = mx.Classifier(model, tokenizer, POLICY)
    with pytest.warns(UserWarning, match=r"inputs\[40\] fills all 16 tokens"):
        same(classify(rows, batch_size=2), wanted(model, tokenizer, rows, POLICY))


def test_a_stream_reads_no_further_than_it_must(tokenizer):
    classify = mx.Classifier(text_model(tokenizer), tokenizer, POLICY)
    read, rows = [], texts(20)

    def endless():
        for number in count():
            read.append(number)
            yield rows[number % 20]

    same(list(islice(classify(endless(), batch_size=2), 20)), classify(rows))
    assert len(read) <= 20 + 2 * 4 * 2

    def failing():
        yield from rows[:3]
        raise OSError("the source is gone")

    answers = classify(failing())
    same([next(answers) for _ in range(3)], classify(rows[:3]))
    with pytest.raises(OSError, match="the source is gone"):
        next(answers)


BAD = [
    (None, r"inputs\[2\] is None; a text must be a string"),
    (3, r"inputs\[2\] is 3; a text must"),
    ("", r"inputs\[2\] is '': an empty text"),
    (" \n", r"inputs\[2\] is ' \\n': an empty text"),
    (float("nan"), r"inputs\[2\] is nan"),
    (("a", "cat"), r"inputs\[2\] is \('a', 'cat'\); this model reads single texts"),
    ({"text": "a", "text_pair": "b"}, r"inputs\[2\] has the keys"),
    ({"txt": "a"}, r"inputs\[2\] has the keys \['txt'\]; this model reads text"),
    ("half \ud83d", r"inputs\[2\] holds '\\ud83d', half a character"),
    (b"cat", r"inputs\[2\] is b'cat'"),
]


@pytest.mark.parametrize(("bad", "message"), BAD)
def test_bad_texts_are_refused_by_their_place(bad, message, tokenizer, monkeypatch):
    model = text_model(tokenizer)
    classify, rows = mx.Classifier(model, tokenizer, POLICY), texts(2)
    answers = classify(iter([*rows, bad, "a cat"]))
    same([next(answers), next(answers)], wanted(model, tokenizer, rows, POLICY))
    with pytest.raises(ValueError, match=message):
        next(answers)
    monkeypatch.setattr(mx.Engine, "stream", None)  # a list's are refused before anything runs
    with pytest.raises(ValueError, match=message):
        classify([*rows, bad, "a cat"])


def test_arguments_that_will_not_do_are_refused(tokenizer):
    model = text_model(tokenizer)
    classify = mx.Classifier(model, tokenizer, POLICY)
    for wrong, message in [
        ({"top_k": 0}, "from 1 to 3"),
        ({"top_k": 4}, "from 1 to 3"),
        ({"top_k": True}, "from 1 to 3"),
        ({"batch_size": 0}, "batch_size"),
        ({"policy": "max-prop=0.9"}, "did you mean 'max-prob'"),
        ({"policy": mx.FixedExit(9)}, "9"),
    ]:
        with pytest.raises(ValueError, match=message):
            classify(["a cat"], **wrong)
    for inputs in (3, None, {"a cat", "a dog"}):
        with pytest.raises(ValueError, match="one input, or a list or generator"):
            classify(inputs)
    with pytest.raises(ValueError, match="give its tokenizer"):
        mx.Classifier(model)
    model.preprocessing = {}
    with pytest.raises(ValueError, match=r"set model\.preprocessing"):
        mx.Classifier(model)
    number = text_model(tokenizer, "regression", classes=1)
    with pytest.raises(ValueError, match="not for regression"):
        mx.Classifier(number, tokenizer, mx.FixedExit(0))("a cat", top_k=1)


def test_rows_that_are_no_numbers_are_named(tokenizer):
    model = text_model(tokenizer)
    with torch.no_grad():
        row = tokenizer.convert_tokens_to_ids("house")
        model.backbone.embeddings.word_embeddings.weight[row] = torch.nan
    classify = mx.Classifier(model, tokenizer, POLICY)
    with pytest.raises(ValueError, match="logits for row 9"):
        classify([*["a cat"] * 9, "the house", "a dog"], batch_size=2)


@pytest.mark.filterwarnings("ignore:inputs")  # that fill all tokens
@pytest.mark.parametrize("side", ["right", "left"])
def test_words_get_a_label_each(side, tokenizer, tmp_path):
    tokenizer = tokenizer_in(tmp_path)
    tokenizer.padding_side = side
    model = text_model(tokenizer, "token-classification")
    rows = [text.split() for text in texts(21)]
    rows[3:6] = [["cats"], ["the", "\u200b", "dogs", "runs"], ["cats", "runs"] * 9]
    classify = mx.Classifier(model, tokenizer, POLICY)
    expected = []
    for words in rows:
        inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        inputs = {name: value[:, :16].clone() for name, value in inputs.items()}
        whole = tokenizer(words, is_split_into_words=True).word_ids()
        if len(whole) > 16:  # the last token stays [SEP]
            whole = [*whole[:15], None]
            inputs["input_ids"][0, 15] = tokenizer.sep_token_id
        first = {word: place for place, word in reversed([*enumerate(whole)]) if word is not None}
        mask = torch.zeros_like(inputs["input_ids"])
        mask[0, list(first.values())] = 1
        (logits_TC,), (exit,) = model.predict(POLICY, **inputs, answer_mask=mask)
        labels = [
            LABELS[int(logits_TC[first[word]].argmax())] if word in first else None
            for word in range(len(words))
        ]
        expected.append((words, labels, int(exit)))
    assert len({exit for *_, exit in expected}) > 1
    for size in (1, 4, 32):
        answers = classify(rows, batch_size=size)
        assert [(a["words"], a["labels"], a["exit"]) for a in answers] == expected
    for a in answers:
        assert [score is None for score in a["scores"]] == [one is None for one in a["labels"]]
    assert (expected[4][1][1], expected[5][1][-1]) == (None, None)
    assert classify(" ".join(rows[0])) == classify(tuple(rows[0])) == classify([rows[0]])[0]
    for bad in ("", [], ["a", " "], [1], None):
        with pytest.raises(ValueError, match=r"inputs\[1\]"):
            classify([rows[0], bad])


def test_sentence_encoders_give_vectors(tokenizer):
    model = text_model(tokenizer, "embedding", classes=16)
    classify, rows = mx.Classifier(model, tokenizer, mx.FixedExit(1)), texts(5)
    for row, answer in zip(rows, classify(rows), strict=True):
        inputs = tokenizer(row, truncation=True, max_length=16, return_tensors="pt")
        vector = model.predict(mx.FixedExit(1), **inputs).logits_BC[0].tolist()
        assert answer == {"vector": pytest.approx(vector, abs=1e-5), "exit": 1, "layers": 2}
        assert math.hypot(*answer["vector"]) == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="not for embedding"):
        classify(rows, top_k=1)


def test_images_come_in_all_forms(tmp_path):
    model, images = image_model(), pictures(11)
    expected = []
    for image in images:
        x = image_files.read(image, model.preprocessing)
        (logits_C,), (exit,) = model.predict(POLICY, x[None])
        expected.append((LABELS[int(logits_C.argmax())], int(exit)))
    assert len({exit for _, exit in expected}) > 1
    classify = mx.Classifier(model, policy=POLICY)
    files, encoded = [], []
    for number, image in enumerate(images):
        files.append(tmp_path / f"{number}.png")
        image.save(files[-1])
        file = io.BytesIO()
        image.save(file, "PNG")
        encoded.append(file.getvalue())
    forms = [images, files, list(map(str, files)), encoded, list(map(np.asarray, images))]
    for rows in forms:
        answers = classify(rows, batch_size=3)
        assert [(answer["label"], answer["exit"]) for answer in answers] == expected
        assert classify(rows[0])["label"] == expected[0][0]
    grey = np.asarray(images[0].convert("L"))
    assert classify(grey) == classify(grey[:, :, None]) == classify(images[0].convert("L"))
    same_size = np.stack([np.asarray(images[0])] * 2)
    assert [answer["label"] for answer in classify(same_size)] == [expected[0][0]] * 2
    for bad, message in [
        (np.zeros((3, 8, 8), np.uint8), r"inputs\[1\] is an array uint8 \[3, 8, 8\]"),
        (np.zeros((8, 8, 3)), "float64"),
        (None, r"inputs\[1\] is None"),
        ("", r"inputs\[1\]"),
        (b"no image", r"inputs\[1\]: can't read"),
        (str(tmp_path / "none.png"), r"inputs\[1\]: can't read"),
    ]:
        with pytest.raises(ValueError, match=message):
            classify([images[0], bad])
        answers = classify(iter([images[0], bad]))
        assert next(answers)["label"] == expected[0][0]
        with pytest.raises(ValueError, match=message):
            next(answers)


def test_a_target_per_call_is_served_from_the_table(tokenizer):
    model, rows = text_model(tokenizer), texts(40)
    model.policy = mx.FixedExit(3)
    classify = mx.Classifier(model, tokenizer)
    with pytest.raises(ValueError, match=r"speedup=2: there is no calibration table"):
        classify(rows, speedup=2)
    data = TextDataset.from_texts(tokenizer, texts(300, 5), None, torch.arange(300) % 3)
    outputs = mx.collect(model, data)
    model.calibration = mx.calibration_table(outputs, mx.MaxProb)
    for target in ({"speedup": 1.5}, {"speedup": 2}, {"max_loss": 3.5}, {"max_loss": 20}):
        chosen = model.calibration.settings[
            choosing.choose(model.calibration.to_json(), next(iter(target.items())))
        ]
        same(classify(rows, **target), wanted(model, tokenizer, rows, chosen.policy))
        if "speedup" in target:
            assert chosen.speedup_layers >= target["speedup"]
        else:
            assert chosen.loss_bound <= target["max_loss"] / 100
    assert len(classify._engines) <= 4
    with pytest.raises(ValueError, match="no setting of the calibration table"):
        classify(rows, max_loss=0.1)
    with pytest.raises(ValueError, match="policy and speedup: give one"):
        classify(rows, policy="max-prob=0.9", speedup=2)
    with pytest.raises(ValueError, match="no latency table"):
        classify(rows, milliseconds=5)
    model.latency = mx.profile(model, batch_sizes=(1, 4), repeats=1)
    full = model.latency.expected_ms((0, 0, 0, 1), 1)
    (answer,) = classify(rows[:1], milliseconds=1000, batch_size=1)
    same([answer], wanted(model, tokenizer, rows[:1], model.calibration.settings[0].policy))
    ms = model.latency.expected_ms(model.calibration.settings[-1].shares_M, 1)
    assert ms < full
    with pytest.raises(ValueError, match="no setting of the calibration table takes"):
        classify(rows[0], milliseconds=ms / 2)
