"""A user's own data: formats, guesses, splits, labels, and rows that can't be used."""

import csv
import json
from pathlib import Path

import datasets
import numpy as np
import pandas
import pytest
import torch
import transformers
from PIL import Image
from torchvision.transforms import v2

import multiexit as mx
from multiexit.data import load
from multiexit.data.own import finding, loading, targets
from multiexit.data.own.image_sets import AUGMENTS

ROWS = [
    {"review": f"{word} film {number}", "mood": mood, "id": number}
    for number, (word, mood) in enumerate(
        10 * [("good", "glad"), ("bad", "angry"), ("dull", "sad")]
    )
]


def quiet(_):
    pass


def rows_of(data):
    return [(row["input_ids"].tolist(), row["labels"].tolist()) for row in data]


def write_csv(path, rows, delimiter=",", encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_csv(folder):
    return write_csv(folder / "a.csv", ROWS)


def as_semicolons(folder):
    return write_csv(folder / "a.csv", ROWS, ";", "utf-8-sig")


def as_excel(folder):
    path = as_semicolons(folder)
    path.write_text("sep=;\n" + path.read_text(encoding="utf-8-sig"), encoding="utf-16")
    return path


def as_pandas(folder):
    pandas.DataFrame(ROWS).to_csv(folder / "a.csv")
    return folder / "a.csv"


def as_tsv(folder):
    return write_csv(folder / "a.tsv", ROWS, "\t")


def as_jsonl(folder):
    path = folder / "a.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in ROWS))
    return path


def as_json(folder):
    path = folder / "a.json"
    path.write_text(json.dumps({"data": ROWS}))
    return path


def as_parquet(folder):
    path = folder / "a.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    return path


def as_saved_set(folder):
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))
    return folder / "saved"


def as_shards(folder):
    (folder / "train").mkdir()
    write_csv(folder / "train" / "0.csv", ROWS[:20])
    write_csv(folder / "train" / "1.csv", ROWS[20:])
    return folder


def as_columns(_):
    return {name: [row[name] for row in ROWS] for name in ROWS[0]}


WAYS = [
    *(as_excel, as_pandas),
    *(as_csv, as_semicolons, as_tsv, as_jsonl, as_json, as_parquet, as_saved_set, as_shards),
    *(as_columns, lambda _: pandas.DataFrame(ROWS), lambda _: datasets.Dataset.from_list(ROWS)),
]


@pytest.mark.parametrize("way", WAYS)
def test_all_formats_give_the_same_task(way, tokenizer, tmp_path):
    there = load(ROWS, tokenizer, notes=quiet)
    task = load(way(tmp_path), tokenizer, notes=quiet)
    assert task.labels == ("angry", "glad", "sad")
    assert rows_of(task.train) == rows_of(there.train)
    assert rows_of(task.sets["validation"]) == rows_of(there.sets["validation"])


def test_guesses_and_draws_are_said(tokenizer):
    notes = []
    task = load(ROWS, tokenizer, notes=notes.append)
    assert notes == [
        "the label is column 'mood'",
        "the text is column 'review'",
        "classes in this order: angry, glad, sad",
        "no validation set: 6 of 30 rows are drawn for one, class by class, with seed 0",
    ]
    assert task.sets["validation"].labels.bincount().tolist() == [2, 2, 2]
    named = []
    load(ROWS, tokenizer, text="review", label="mood", notes=named.append)
    assert named == notes[2:]


def test_texts_that_are_left_out_are_said(tokenizer):
    rows = [
        {"s1": f"the first text of row {n}", "s2": f"the other of {n}", "same": n % 2}
        for n in range(30)
    ]
    notes = []
    load(rows, tokenizer, notes=notes.append)
    assert "texts of 's2' aren't read; one may be named as text_pair" in notes
    load(rows, tokenizer, text_pair="s2", notes=(named := []).append)
    load(ROWS, tokenizer, notes=named.append)
    assert not any("aren't read" in note for note in named)


def test_splits_of_a_folder_by_their_names(tokenizer, tmp_path):
    write_csv(tmp_path / "train.csv", ROWS[:15])
    write_csv(tmp_path / "dev.csv", ROWS[15:21])
    write_csv(tmp_path / "test-0.csv", [*ROWS[21:], ROWS[0]])
    notes = []
    task = load(tmp_path, tokenizer, notes=notes.append)
    sizes = {name: len(rows) for name, rows in task.sets.items()}
    assert (len(task.train), sizes) == (15, {"validation": 6, "test": 10})
    assert "1 of 10 rows of test are in the training set too" in notes
    files = load(
        tmp_path / "train.csv",
        tokenizer,
        validation=tmp_path / "dev.csv",
        test=ROWS[21:],
        notes=quiet,
    )
    assert {name: len(rows) for name, rows in files.sets.items()} == {"validation": 6, "test": 9}


@pytest.mark.parametrize(
    ("values", "problem", "names"),
    [
        (["b", "a", "b"], "classification", ("a", "b")),
        (["10", "9", "2"], "classification", ("2", "9", "10")),
        ([True, False, True], "classification", ("False", "True")),
        ([1.0, 0.0, 1.0], "classification", ("0", "1")),
        (["0.5", "1", "2"], "regression", None),
        ([["x", "y"], [], ["z"]], "multi-label", ("x", "y", "z")),
    ],
)
def test_what_labels_are(values, problem, names):
    goal, _ = targets.found(values)
    assert (goal.problem, goal.names) == (problem, names)
    for value in values:
        number = goal.number(value)
        if problem == "classification":
            assert goal.names[number] in (str(value), str(value).removesuffix(".0"))
        elif problem == "multi-label":
            assert {n for n, yes in zip(names, number, strict=True) if yes} == {*value}
        else:
            assert number == float(value)


def test_columns_of_yes_and_no_are_several_labels(tokenizer):
    rows = [{"text": "good film", "fun": "yes", "long": 0}, {"text": "bad", "fun": 0, "long": 1}]
    task = load(5 * rows, tokenizer, label=["fun", "long"], notes=quiet)
    assert (task.problem, task.labels, task.metric) == ("multi-label", ("fun", "long"), "micro_f1")
    assert set(map(tuple, task.train.labels.tolist())) == {(1.0, 0.0), (0.0, 1.0)}


BAD = [
    ([{"text": "", "label": 1}, {"text": "a", "label": 0}], "row 0: an empty text"),
    ([{"text": "a", "label": None}, {"text": "b", "label": 1}], "row 0: no label"),
    ([{"text": "a", "label": 0}] * 4, "all 4 rows have the label '0'"),
    ([{"text": "a", "label": f"l{i}"} for i in range(60)], "is that the label's column"),
    ([{"text": "a", "label": i} for i in range(60)], "are they classes or values"),
    ([{"text": "a", "mood": i} for i in range(9)], "which of the columns"),
    ([], "no rows"),
    ([["a", 1]], "no dict"),
    ("rows.txt", "no such|hub"),
    ("./nothing.csv", "no such file or folder"),
]


@pytest.mark.parametrize(("rows", "message"), BAD)
def test_bad_data_is_refused(rows, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        load(rows, tokenizer, notes=quiet)


def test_a_column_that_is_not_there_is_named_with_the_nearest(tokenizer):
    with pytest.raises(ValueError, match="no column 'reviw': did you mean 'review'"):
        load(ROWS, tokenizer, text="reviw")


def test_labels_of_another_split_must_be_known(tokenizer):
    other = [{"review": "good", "mood": "proud", "id": 1}]
    with pytest.raises(
        ValueError, match=r"data, row 0: .*none of the 3 classes .* is the row's label, 'proud'"
    ):
        load(ROWS, tokenizer, validation=other, notes=quiet)


def test_bad_rows_are_named_by_line_or_written_aside(tokenizer, tmp_path):
    path = tmp_path / "a.csv"
    good = "".join('"good\nfilm",glad\r\nbad,sad\n' for _ in range(4))
    path.write_text("text,label\n" + good + "one,two,three\n,sad\nfilm,\n", newline="")
    with pytest.raises(
        ValueError,
        match=r"a.csv, line 14: 3 fields, expected 2.*; 3 rows in all "
        r"\(3 fields, expected 2: 1, an empty text: 1, no label: 1\)",
    ):
        load(path, tokenizer, notes=quiet)
    notes = []
    task = load(path, tokenizer, skip_bad=tmp_path / "aside" / "bad.jsonl", notes=notes.append)
    assert len(task.train) + len(task.sets["validation"]) == 8
    aside = [json.loads(line) for line in (tmp_path / "aside" / "bad.jsonl").open()]
    assert [row["place"].rpartition(", ")[2] for row in aside] == ["line 14", "line 15", "line 16"]
    assert any(note.startswith("3 rows left out") for note in notes)


def test_bytes_that_are_no_utf8_are_named_by_line(tokenizer, tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\ngood,1\nb\xe9d,0\n")
    with pytest.raises(ValueError, match=r"a\.csv, line 3: not UTF-8"):
        load(tmp_path / "a.csv", tokenizer, notes=quiet)


def test_rows_that_are_cut_are_counted(tokenizer):
    notes = []
    load(ROWS, tokenizer, max_length=2, notes=notes.append)
    assert "train: 30 of 30 rows fill all 2 tokens; longer ones are cut there" in notes


def draw_images(folder, sizes=((9, 12), (30, 7), (8, 8))):
    for kind in ("cat", "dog"):
        (folder / kind).mkdir(parents=True)
        for number in range(6):
            height, width = sizes[number % len(sizes)]
            pixels = np.full((height, width, 3), 200 if kind == "cat" else 40, np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{number}.png")
    return folder


def test_a_folder_of_images_per_class(tmp_path):
    folder = draw_images(tmp_path / "pets")
    task = load(folder, size=16, notes=quiet)
    assert task.labels == ("cat", "dog")
    assert task.preprocessing["shape"] == [3, 16, 16]
    for image, label in (*task.train, *task.sets["validation"]):
        assert image.shape == (3, 16, 16)
        assert (image[0].mean() > 0) == (label == 0)


def test_images_by_a_table_of_files_and_in_memory(tmp_path):
    folder = draw_images(tmp_path / "pets")
    files = [{"file": str(f), "kind": f.parent.name} for f in sorted(folder.rglob("*.png"))]
    table = write_csv(tmp_path / "files.csv", files)
    opened = [{"image": Image.open(row["file"]), "kind": row["kind"]} for row in files]
    tasks = [
        load(source, size=16, augment="none", notes=quiet) for source in (folder, table, opened)
    ]
    for task in tasks[1:]:
        assert torch.equal(task.train[3][0], tasks[0].train[3][0])


def test_images_of_a_table_lie_beside_it(tmp_path, monkeypatch):
    folder = draw_images(tmp_path / "pets")
    files = [{"file": str(f), "kind": f.parent.name} for f in sorted(folder.rglob("*.png"))]
    near = [{**row, "file": str(Path(row["file"]).relative_to(tmp_path))} for row in files]
    one, other = (
        load(write_csv(tmp_path / "files.csv", rows), size=16, augment="none", notes=quiet)
        for rows in (files, near)
    )
    for place in (tmp_path, tmp_path.parent):
        monkeypatch.chdir(place)
        assert torch.equal(one.train[3][0], other.train[3][0])
    gone = [*near, {"file": "pets/none.png", "kind": "cat"}]
    with pytest.raises(ValueError, match=r"line \d+: no such file, '.*pets/none\.png'"):
        load(write_csv(tmp_path / "files.csv", gone), size=16, notes=quiet)


def test_what_is_no_image_of_a_folder_is_left_alone(tmp_path):
    folder = draw_images(tmp_path / "pets")
    rows = len(load(folder, size=16, notes=quiet).train)
    kind = next(path for path in folder.iterdir() if path.is_dir())
    (kind / "._a.png").write_bytes(b"of another system")
    (kind / "more.png").mkdir()
    assert len(load(folder, size=16, notes=quiet).train) == rows


OWN_CHANGES = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(), v2.ColorJitter(0.5)])


@pytest.mark.parametrize("augment", [*AUGMENTS, lambda image: image.rotate(90), OWN_CHANGES])
def test_augmentation_changes_training_images_alone(augment, tmp_path):
    task = load(draw_images(tmp_path / "pets"), size=16, augment=augment, notes=quiet)
    batch = [task.train[0][0] for _ in range(8)]
    assert all(image.shape == (3, 16, 16) for image in batch)
    held = task.sets["validation"]
    assert torch.equal(held[0][0], held[0][0])


def test_an_augmentation_gives_an_image(tmp_path):
    scaled = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    task = load(draw_images(tmp_path / "pets"), size=16, augment=scaled, notes=quiet)
    with pytest.raises(ValueError, match=r"augment made a torch\.float32 Image .*uint8"):
        task.train[0]


def test_a_run_of_own_rows_from_memory(tokenizer):
    task = load(ROWS, tokenizer, notes=quiet)
    config = transformers.BertConfig(
        vocab_size=6, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    backbone = mx.wrap(transformers.BertModel(config))
    model = mx.MultiExitModel(backbone, task.num_classes, labels=task.labels, problem=task.problem)
    settings = mx.TrainConfig(max_steps=60, batch_size=8, lr=5e-3, progress=False)
    mx.Trainer(model, mx.recipe("joint"), settings).fit(task.train)
    outputs = mx.collect(model, task.sets["validation"], task.metric)
    assert mx.exit_scores(outputs)[-1]["score"] == 1


HALVES = [{"review": f"film {i}", "mood": "ab"[i % 2]} for i in range(10)]

TWISTED = {
    "open quote": 'mood,review\na,x\nb,y\na,"z\nb,u\na,v\n',
    "quote within": 'mood,review\na,x\nb,y\na,"z\nb,u "v\na,"w"\n',
}


@pytest.mark.parametrize("text", TWISTED.values(), ids=TWISTED)
def test_a_quote_that_swallows_rows_is_named_by_its_lines(text, tokenizer, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"a\.csv, lines 4 to \d: .*quotes within it are doubled"):
        load(path, tokenizer, text="review", label="mood", notes=quiet)


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
def test_lines_end_in_any_way(end, tokenizer, tmp_path):
    path = tmp_path / "a.csv"
    lines = ['"mood","re\nview"', *(f'{row["mood"]},"{row["review"]}"' for row in HALVES), ""]
    path.write_bytes(end.join(lines).encode())
    task = load(path, tokenizer, text="re\nview", share=0.5, notes=quiet)
    assert len(task.train) + len(task.sets["validation"]) == len(HALVES)


UNLIKE = {
    "one number in two ways": (["1", "0", "1.0"], "'1.*' and '1.*' look like one class"),
    "one word in two ways": (["caf\u00e9", "cafe\u0301"], "look like one class"),
    "yes and no for each": ([[1, 0, 1], [0, 0, 1]], "a list with 1 twice"),
    "yes and no for two": ([[1, 0], [0, 1]], "have all labels"),
    "shares": ([[0.5, 0.5], [0.25, 0.75]], "numbers with fractions"),
    "an array of yes and no": ([np.array([1, 0, 1]), np.array([0, 1, 0])], "twice"),
    "lists as classes": ([["a"], ["b"]], "no name", "classification"),
    "infinity": ([float("inf"), 1.5, 2.5], "no number, inf", "regression"),
    "a word among numbers": (
        ["1.5", "2.5", "n/a"],
        "row 2: a label that is no number",
        "regression",
    ),
}


@pytest.mark.parametrize("case", UNLIKE.values(), ids=UNLIKE)
def test_labels_that_could_be_read_wrongly_are_refused(case, tokenizer):
    values, message, *problem = case
    rows = [{"review": f"film {i}", "mood": value} for i, value in enumerate(5 * values)]
    with pytest.raises(ValueError, match=message):
        load(rows, tokenizer, label="mood", problem=next(iter(problem), None), notes=quiet)


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_labels_are_numpys_and_torchs_too(make, tokenizer):
    columns = {"review": ["a", "b", "c", "d"], "mood": make([1.0, 0.0, 1.0, 0.0])}
    assert load(columns, tokenizer, share=0.5, notes=quiet).labels == ("0", "1")
    columns["mood"] = [np.array(["x", "y"]), np.array(["x"])] * 2
    assert load(columns, tokenizer, share=0.5, notes=quiet).problem == "multi-label"


def test_a_word_among_numbers_is_left_out_like_other_bad_rows(tokenizer, tmp_path):
    rows = [{"review": f"film {i}", "mood": v} for i, v in enumerate(["1.5", "2.5", "n/a"] * 2)]
    aside = tmp_path / "bad.jsonl"
    task = load(
        rows, tokenizer, label="mood", problem="regression", share=0.5, skip_bad=aside, notes=quiet
    )
    assert len(aside.read_text().splitlines()) == 2
    assert len(task.train) == len(task.sets["validation"]) == 2


def test_columns_and_their_problem_go_together(tokenizer):
    rows = [{"review": f"film {i}", "a": i % 2, "b": i % 3 > 1} for i in range(12)]
    with pytest.raises(ValueError, match=r"each yes or no, .* got 'regression'"):
        load(rows, tokenizer, label=["a", "b"], problem="regression", notes=quiet)
    with pytest.raises(ValueError, match="'a' is named twice"):
        load(rows, tokenizer, label=["a", "a"], notes=quiet)


def test_a_set_is_drawn_again_from_the_same_rows_alone(tokenizer, tmp_path):
    path = write_csv(tmp_path / "a.csv", ROWS)
    drawn_from = load(path, tokenizer, notes=quiet).preprocessing["data"]["drawn_from"]
    goal = targets.given(("angry", "glad", "sad"), 3, "classification")
    trained = loading.Trained(goal, drawn_from=drawn_from)
    found = finding.find(path, notes=quiet)
    again = loading.task_of(found, tokenizer, trained=trained, notes=quiet)
    assert again.preprocessing["data"]["drawn_from"] == drawn_from
    write_csv(path, ROWS[:-1])
    with pytest.raises(ValueError, match="other rows than when the model was trained"):
        loading.task_of(finding.find(path, notes=quiet), tokenizer, trained=trained, notes=quiet)
