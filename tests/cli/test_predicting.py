"""`multiexit predict`: a JSON line for each image and each line of text."""

import json
import math
import shutil

import pytest
from helpers import command
from PIL import Image

import multiexit as mx
from multiexit.cli import lines

# Images


def test_predicting_images_gives_one_json_line_each_in_order(digits, pictures):
    folder, _ = digits
    files, inputs = pictures
    words = ("predict", folder / "model", *files, "--policy", "max-prob=0.5")
    ended = command(*words)
    assert ended.code == 0, ended.err
    answers = [json.loads(line) for line in ended.out.splitlines()]
    assert [answer["file"] for answer in answers] == [str(path) for path in files]
    model = mx.MultiExitModel.from_pretrained(folder / "model")
    wanted = model.predict(mx.MaxProb(0.5), inputs)
    assert [answer["exit"] for answer in answers] == wanted.exit_B.tolist()
    assert len(set(wanted.exit_B.tolist())) > 1
    p_BC = wanted.logits_BC.softmax(-1)
    assert [int(answer["label"]) for answer in answers] == p_BC.argmax(-1).tolist()
    assert [a["score"] for a in answers] == pytest.approx(p_BC.amax(-1).tolist(), abs=1e-5)
    assert [a["layers"] for a in answers] == [a["exit"] + 1 for a in answers]
    shutil.copytree(files[0].parent, files[0].parent / "pets" / "cat")
    (files[0].parent / "pets" / "cat" / "notes.txt").write_text("no image")
    of_folder = command("predict", folder / "model", files[0].parent / "pets", *words[-2:])
    assert [{**json.loads(line), "file": ""} for line in of_folder.out.splitlines()] == [
        {**answer, "file": ""} for answer in answers
    ]
    smaller = command(*words, "--batch-size", 3).out.splitlines()  # sums are rounded otherwise
    assert [json.loads(line) for line in smaller] == [
        {**answer, "score": pytest.approx(answer["score"], abs=1e-5)} for answer in answers
    ]


def test_images_of_a_table_are_beside_it(digits, pictures, tmp_path):
    folder, _ = digits
    files, inputs = pictures
    shutil.copytree(files[0].parent, tmp_path / "near")
    names = [f"near/{path.name}" for path in files]
    (tmp_path / "rows.csv").write_text("\n".join(["image", *names, ""]))
    words = ("predict", folder / "model", tmp_path / "rows.csv", "--image", "image")
    ended = command(*words, "--policy", "max-prob=0.5")
    assert ended.code == 0, ended.err
    model = mx.MultiExitModel.from_pretrained(folder / "model")
    wanted = model.predict(mx.MaxProb(0.5), inputs)
    answers = [json.loads(line) for line in ended.out.splitlines()]
    assert [answer["exit"] for answer in answers] == wanted.exit_B.tolist()


def test_the_models_own_policy_is_the_default(digits, pictures):
    folder, _ = digits
    files, _ = pictures
    own = command("predict", folder / "model", *files)
    assert own.code == 0
    assert own.out == command("predict", folder / "model", *files, "--policy", "patience=4").out


def test_colour_and_other_sizes_are_taken_as_the_model_needs_them(digits, tmp_path):
    Image.new("RGB", (31, 17), (200, 10, 10)).save(tmp_path / "wide.png")
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    ended = command("predict", digits[0] / "model", tmp_path / "wide.png", tmp_path / "clear.png")
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == 2


def test_one_bad_image_among_many_is_one_line_and_the_others_are_answered(
    digits, pictures, tmp_path
):
    files, _ = pictures
    bad, missing = tmp_path / "bad.png", tmp_path / "missing.png"
    bad.write_bytes(files[0].read_bytes()[:40])
    given = [files[0], bad, *files[1:4], missing, *files[4:]]
    alone = command("predict", digits[0] / "model", *files)
    for size in (1, 2, 32):
        ended = command("predict", digits[0] / "model", *given, "--batch-size", size)
        assert (ended.code, len(ended.out.splitlines())) == (2, len(files))
        for one, two in zip(ended.out.splitlines(), alone.out.splitlines(), strict=True):
            got, wanted = json.loads(one), json.loads(two)
            assert got.pop("score") == pytest.approx(wanted.pop("score"), abs=1e-5)
            assert got == wanted
        first, second = ended.err.splitlines()
        assert (str(bad) in first, str(missing) in second) == (True, True)
    model = mx.MultiExitModel.from_pretrained(digits[0] / "model")
    classify, names = mx.Classifier(model, policy=mx.Patience(2)), [str(path) for path in given]
    rows = list(lines.answers(classify, names, 3, False))
    assert [row["file"] for row in rows] == names
    assert [row["file"] for row in rows if "error" in row] == [str(bad), str(missing)]


def test_file_names_that_are_no_text_are_escaped(digits, pictures):
    odd = pictures[0][0].with_name("caf\udce9.png")
    odd.write_bytes(pictures[0][0].read_bytes())
    ended = command("predict", digits[0] / "model", odd)
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["file"] == str(odd)
    assert ended.out.isascii()


# Text


LINES = [
    "the cat saw a dog\tthe cat saw a dog",
    "old house\ta new blue fish ate quickly today",
    "a cat\tnot a cat",
    "the dog runs\tthe dog slept",
    "red fish\tred fish",
]


def test_predicting_pairs_from_stdin(mrpc):
    place, _ = mrpc
    words = ("predict", place / "run" / "model", "--policy", "patience=1")
    ended = command(*words, stdin="\n".join(LINES) + "\n")
    assert ended.code == 0, ended.err
    answers = [json.loads(line) for line in ended.out.splitlines()]
    assert [answer["text"] for answer in answers] == LINES
    assert all(answer["label"] in ("not_equivalent", "equivalent") for answer in answers)
    assert all(0.5 <= answer["score"] <= 1 for answer in answers)
    for size in (1, 2, 5):  # what else is in the batch changes nothing
        other = command(*words, "--batch-size", size, stdin="\n".join(LINES) + "\n")
        again = [json.loads(line) for line in other.out.splitlines()]
        for one, two in zip(answers, again, strict=True):
            assert math.isclose(one.pop("score", 0), two.pop("score"), abs_tol=1e-4)
            assert one == two
        answers = [json.loads(line) for line in ended.out.splitlines()]


def test_predicting_pairs_is_what_training_reads(mrpc):
    """The same tokens as the data set makes: the scores of the dev set come out again."""
    place, _ = mrpc
    rows = (place / "glue" / "MRPC" / "dev.tsv").read_text().splitlines()[1:]
    fields = [row.split("\t") for row in rows]
    stdin = "".join(f"{one}\t{two}\n" for _, _, _, one, two in fields)
    ended = command("predict", place / "run" / "model", "--policy", "fixed=2", stdin=stdin)
    right = [
        json.loads(line)["label"] == ("not_equivalent", "equivalent")[int(row[0])]
        for line, row in zip(ended.out.splitlines(), fields, strict=True)
    ]
    results = json.loads((place / "run" / "results.json").read_text())
    assert sum(right) / len(right) == pytest.approx(results["exits"][2]["scores"]["accuracy"])


def test_a_tab_is_white_space_to_a_model_of_single_texts(mrpc, tmp_path):
    shutil.copytree(mrpc[0] / "run" / "model", tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "multiexit.json").read_text())
    settings["preprocessing"]["pairs"] = False
    (tmp_path / "model" / "multiexit.json").write_text(json.dumps(settings))
    ended = command("predict", tmp_path / "model", stdin="the cat\tsaw a dog\nthe cat saw a dog\n")
    assert ended.code == 0, ended.err
    tabbed, spaced = map(json.loads, ended.out.splitlines())
    assert (tabbed.pop("text"), spaced.pop("text")) == ("the cat\tsaw a dog", "the cat saw a dog")
    assert tabbed == spaced
    said = " ".join(command("predict", "--help").out.split())
    assert "the whole line is the text, and a tab in it white space" in said


def test_a_file_of_lines_may_have_a_byte_order_mark_and_windows_line_ends(mrpc, tmp_path):
    place, _ = mrpc
    words = ("predict", place / "run" / "model")
    (tmp_path / "lines.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(LINES[:4]).encode())
    ended = command(*words, tmp_path / "lines.txt")
    assert ended.code == 0, ended.err
    texts = [json.loads(line)["text"] for line in ended.out.splitlines()]
    assert texts == LINES[:4]
    assert ended.out == command(*words, stdin="\n".join(LINES[:4])).out
    assert command(*words, "-", stdin=LINES[0]).out == ended.out.splitlines(keepends=True)[0]


def test_lines_that_cant_be_read_are_named_and_the_others_answered(mrpc, tmp_path):
    words, folder = [*LINES[:2], "", "red fish", *LINES[2:], " \t "], mrpc[0] / "run" / "model"
    (tmp_path / "lines.txt").write_text("\n".join(words) + "\n")
    whole = command("predict", folder, stdin="\n".join(LINES)).out
    for size in (1, 32):
        ended = command("predict", folder, tmp_path / "lines.txt", "--batch-size", size)
        assert ended.code == 2
        for one, two in zip(ended.out.splitlines(), whole.splitlines(), strict=True):
            got, wanted = json.loads(one), json.loads(two)
            assert math.isclose(got.pop("score"), wanted.pop("score"), abs_tol=1e-4)
            assert got == wanted
        empty, alone, blank = ended.err.splitlines()
        assert (
            empty
            == "multiexit: line 3: this model reads sentence pairs, one tab between them; got ''"
        )
        assert ("line 4" in alone, "line 8" in blank, "an empty text" in blank) == (True,) * 3


def test_no_lines_give_no_answers(mrpc):
    ended = command("predict", mrpc[0] / "run" / "model", stdin="")
    assert (ended.code, ended.out) == (0, "")
