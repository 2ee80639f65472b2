"""A user's own data that is large, damaged, or could be read wrongly without a word."""

import json
import tracemalloc
from decimal import Decimal
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from multiexit.data import load, token_cache
from multiexit.data.own import finding, image_folders, loading, places, rows, targets


def quiet(_):
    pass


def texts(count, label=lambda row: "ab"[row % 2]):
    return [{"text": f"good film {row}", "label": label(row)} for row in range(count)]


def write_lines(path, table):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


def test_texts_are_not_held_in_memory(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(token_cache, "LEAST", 100)
    monkeypatch.setattr(rows, "CHUNK", 50)
    path = tmp_path / "a.csv"
    with path.open("w") as file:
        file.write("text,label\n")
        for row in range(600):
            file.write(f"good {row} {'x' * 40_000},{row % 2}\n")
    tracemalloc.start()
    task = load(path, tokenizer, max_length=8, notes=quiet)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(task.train) == 480
    assert peak < path.stat().st_size / 2
    again = load(path, tokenizer, max_length=8, notes=quiet)
    for one, other in zip(task.train, again.train, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
    monkeypatch.setattr(token_cache, "LEAST", 10_000)
    in_memory = load(path, tokenizer, max_length=8, notes=quiet)
    assert torch.equal(in_memory.train.fields["input_ids"], task.train.fields["input_ids"])


def test_a_file_that_changes_while_it_is_read_is_refused(tokenizer, tmp_path, monkeypatch):
    path = write_lines(tmp_path / "a.jsonl", texts(20))
    read = rows.read

    def and_then_changed(*args):
        found = read(*args)
        write_lines(path, texts(19))
        return found

    monkeypatch.setattr(rows, "read", and_then_changed)
    with pytest.raises(ValueError, match="changed while it was read"):
        load(path, tokenizer, notes=quiet)


def test_columns_are_those_of_all_lines(tokenizer, tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": "good"}, *texts(20)])
    with pytest.raises(ValueError, match="line 1: no label"):
        load(path, tokenizer, notes=quiet)
    task = load(path, tokenizer, label="label", skip_bad=tmp_path / "bad", notes=quiet)
    assert len(task.train) + len(task.sets["validation"]) == 20


WRONG = {
    "NUL": ([{"text": "a\0b", "label": "a"}, *texts(9)], "row 0: a text with a NUL"),
    "half": ([{"text": "a\ud800", "label": "a"}, *texts(9)], "row 0: a text with half a char"),
    "nan": ([*texts(9), {"text": "a", "label": "NaN"}], "row 9: no label, 'NaN'"),
    "true and 1": (texts(9, lambda row: [True, 1, 0][row % 3]), "two kinds"),
    "few": (texts(2), "can't be drawn from 2 rows, of which class 'a' has most, 1"),
    "array": ([{"image": np.zeros((2, 2, 3)), "label": 0}], "an ndarray|a ndarray"),
    "no name": ("", "an empty name"),
    "a word among fractions": (
        texts(9, lambda row: row / 2 if row else "n/a"),
        "none, such as 'n",
    ),
    "a word among many": (texts(40, lambda row: row % 4 if row else "five"), "and 1 that are none"),
    "whose square is infinite": (
        texts(9, lambda row: 1e19 if row == 3 else row / 2),
        "a number beyond 1e.18",
    ),
    "unseen": (texts(9, lambda row: ["good", "bad", "good\u200b"][row % 3]), "look like one class"),
    "spaces": (texts(9, lambda row: ["so so", "bad", "so  so"][row % 3]), "look like one class"),
    "near": (
        texts(9, lambda row: 1e9 + 0.5 + row / 10),
        "float32 hardly tells apart: take 1000000",
    ),
    "keys": ([*texts(9), {"1": "a", 1: "b"}], "row 9 has two keys called '1'"),
}


@pytest.mark.parametrize(("data", "message"), WRONG.values(), ids=WRONG)
def test_what_can_not_be_read_is_refused(data, message, tokenizer):
    kind = "image" if "ndarray" in message else None
    with pytest.raises(ValueError, match=message):
        load(data, tokenizer, image=kind, notes=quiet)


@pytest.mark.parametrize("write", ["{},5", "1,{:03}", "{}%", "{} %"])
def test_numbers_in_another_writing_are_named_where_classes_fail(write, tokenizer):
    for count, failure in ((20, "can't be drawn from 20 rows"), (120, "120 different labels")):
        notes, rows = [], texts(count, write.format)
        with pytest.raises(ValueError, match=rf"{failure}.*is read as a name: numbers are"):
            load(rows, tokenizer, notes=notes.append)
    load(texts(20, lambda row: write.format(row % 2)), tokenizer, notes=notes.append)
    assert "is read as a name" in notes[-2]
    load(texts(20, lambda row: ["1.2.3", "new"][row % 2]), tokenizer, notes=notes.append)
    assert notes[-2] == "classes in this order: 1.2.3, new"


def test_numbers_that_floats_can_not_tell_apart_are_two_classes(tokenizer):
    for write in (int, str):
        rows = texts(20, lambda row: write(10**20 + row % 2))  # noqa: B023
        assert load(rows, tokenizer, notes=quiet).labels == (f"{10**20}", f"{10**20 + 1}")
    with pytest.raises(ValueError, match="look like one class"):
        load(texts(20, lambda row: ["1e20", str(10**20)][row % 2]), tokenizer, notes=quiet)


def test_decimals_are_numbers(tokenizer):
    cents = texts(20, lambda row: Decimal(row) / 4)
    task = load(cents, tokenizer, problem="regression", notes=quiet)
    labels = {float(row["labels"]) for split in (task.train, *task.sets.values()) for row in split}
    assert labels == {row / 4 for row in range(20)}


def test_a_key_twice_and_other_nul_bytes_are_refused(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1, "label": 0}\n')
    with pytest.raises(ValueError, match="the key 'label' is there twice"):
        load(tmp_path / "a.jsonl", tokenizer, notes=quiet)
    (tmp_path / "a.csv").write_bytes("text,label\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match="line 1: a NUL character"):
        load(tmp_path / "a.csv", tokenizer, notes=quiet)


def test_a_column_without_a_name_is_left_out_where_it_counts(tokenizer, tmp_path):
    path, notes = tmp_path / "a.csv", []
    lines = [f"{row},good film {row},{'ab'[row % 2]}" for row in range(20)]
    path.write_text("\n".join([",text,label", *lines]))
    assert len(load(path, tokenizer, notes=notes.append).train) == 16
    assert notes[0] == f"{path}: the first column has no name and counts the rows: it is left out"
    path.write_text("\n".join([",text,label", *lines[1:]]))
    with pytest.raises(ValueError, match=r"without a name .* index\? write .* index=False"):
        load(path, tokenizer, notes=quiet)
    path.write_text("\n".join(["text,,label", *lines]))
    with pytest.raises(ValueError, match=r"a column without a name in \['text', '', 'label'\]$"):
        load(path, tokenizer, notes=quiet)


def test_a_first_line_that_may_be_a_row_is_told(tokenizer, tmp_path):
    for label, why in (("'b' is also among", "b"), ("'0.5' is a number", "0.5"), (None, "label")):
        path, notes = tmp_path / "a.csv", []
        rows = [f"good film {row},{row + 0.25 if why == '0.5' else 'ab'[row % 2]}"
                for row in range(20)]  # fmt: skip
        path.write_text("\n".join([f"text,{why}", *rows]))
        load(path, tokenizer, label=why, notes=notes.append)
        said = [note for note in notes if "if it is a row, put a line of names above it" in note]
        assert len(said) == (label is not None)
        assert label is None or label in said[0]


def test_lines_are_named_below_what_excel_writes_above_the_names(tokenizer, tmp_path):
    path = tmp_path / "a.csv"
    whole = "sep=;\r\ntext;label\r\ngood;a\r\nbad\r\n".encode("utf-16")
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"a\.csv, line 4: 1 fields, expected 2"):
        load(path, tokenizer, notes=quiet)
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="begins as UTF-16 does, and goes on otherwise"):
        load(path, tokenizer, notes=quiet)


def test_repeats_and_rare_classes_of_a_drawn_set_are_said(tokenizer):
    notes = []
    load([*texts(20), *texts(20), {"text": "bad", "label": "rare"}], tokenizer, notes=notes.append)
    assert "the drawn validation set has no row of rare (1 in all): too few" in notes
    assert any(note.endswith("drawn rows are in the training set too, with equal inputs")
               for note in notes)  # fmt: skip
    notes.clear()
    load(texts(12, lambda row: ["Yes", "yes", "no"][row % 3]), tokenizer, notes=notes.append)
    assert any("('Yes' and 'yes' count as two)" in note for note in notes)


def test_a_set_of_values_that_are_all_the_same_is_told(tokenizer):
    train, same = texts(20, lambda row: row / 2), texts(5, lambda row: 1.5)
    notes = []
    load(train, tokenizer, test=same, notes=notes.append)
    said = "has no label but 1.5 (5 rows), of which correlations and R² say nothing"
    assert f"test {said}" in notes
    assert not any("train has no label" in note for note in notes)
    load(train[:5], tokenizer, share=0.2, notes=notes.append)
    assert any(note.startswith("the drawn validation set has no label but") for note in notes)


def test_what_a_folder_holds_beside_its_splits_is_said(tokenizer, tmp_path):
    write_lines(tmp_path / "train.jsonl", texts(20))
    write_lines(tmp_path / "trian2.jsonl", texts(20))
    (table,) = places.splits(tmp_path).values()
    assert table.notes == (f"{tmp_path}: trian2.jsonl left alone",)
    write_lines(tmp_path / "training" / "a.jsonl", texts(20))
    with pytest.raises(ValueError, match=r"training, train.jsonl, each of which could be train"):
        places.splits(tmp_path)
    sets = datasets.DatasetDict(
        dict.fromkeys(["train", "extra"], datasets.Dataset.from_list(texts(9)))
    )
    sets.save_to_disk(str(tmp_path / "saved"))
    tables = places.splits(tmp_path / "saved")
    assert [*tables] == ["train"]
    assert tables["train"].notes[0].endswith("the splits extra are left alone")


@pytest.fixture
def pets(tmp_path):
    """A folder of two classes, twelve images."""
    draw = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "pets" / ("cat", "dog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draw.integers(0, 255, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.{'jpg' if number % 3 else 'png'}")
    return tmp_path / "pets"


def test_images_that_can_not_be_read_are_found_at_the_start(pets, tmp_path):
    for name in ("cat/2.jpg", "cat/6.png"):
        whole = (pets / name).read_bytes()
        (pets / name).write_bytes(whole[: len(whole) * 2 // 3])
    (pets / "dog" / "0.png").touch()
    with pytest.raises(ValueError, match=r"cat/2\.jpg: can't be read as an image") as refused:
        load(pets, size=16, notes=quiet)
    assert "3 such rows" in str(refused.value)
    assert str(refused.value).count("2.jpg") == 1
    task = load(pets, size=16, skip_bad=tmp_path / "bad", notes=quiet)
    assert len(task.train) + len(task.sets["validation"]) == 10
    assert len((tmp_path / "bad").read_text().splitlines()) == 3
    for split in (task.train, *task.sets.values()):
        assert all(len(image) == 3 for image, _ in split)


def test_a_table_beside_folders_of_images_is_read_and_said(pets):
    (pets / "labels.csv").write_text("image,label\n" + 10 * "cat/0.png,x\ncat/2.jpg,y\n")
    notes = []
    task = load(pets, image="image", size=16, notes=notes.append)
    assert task.labels == ("x", "y")
    assert notes[0] == f"{pets}: labels.csv is read; of cat, dog only what it names"


def test_folders_in_folders_and_links_are_read_and_others_told(pets, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (pets / "cat" / "0.png").rename(tmp_path / "elsewhere" / "0.png")
    (pets / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (pets / "cat" / "again").symlink_to(pets / "cat")
    (pets / "cat" / "gone.png").symlink_to(pets / "nothing")
    (pets / "cover.png").touch()
    (pets / "none").mkdir()
    notes = []
    task = load(pets, size=16, notes=notes.append)
    assert len(task.train) + len(task.sets["validation"]) == 12
    assert "2 files are left alone (2 .png)" in notes[0]
    assert notes[1].endswith("no images in none")


def test_what_systems_leave_about_is_no_class_and_no_table(pets, tokenizer, tmp_path):
    whole = (pets / "cat" / "0.png").read_bytes()
    for name in ("__MACOSX/cat/0.png", "cat/__MACOSX/0.png", "cat/._0.png", "._1.png"):
        (pets / name).parent.mkdir(parents=True, exist_ok=True)
        (pets / name).write_bytes(whole)
    for name in ("Thumbs.db", "cat/Thumbs.db", "dog/.DS_Store", "desktop.ini"):
        (pets / name).touch()
    notes = []
    task = load(pets, size=16, notes=notes.append)
    assert (task.labels, len(image_folders.images(pets))) == (("cat", "dog"), 12)
    assert not any("left alone" in note for note in notes)
    for folder in (tmp_path / "tables", tmp_path / "splits" / "train"):
        write_lines(folder / "train.jsonl", texts(20))
        for name in ("._train.jsonl", "__MACOSX/train.jsonl"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"\0\5\x16\7")
        assert len(load(folder, tokenizer, notes=(said := []).append).train) == 16
        assert not any("left alone" in note for note in said)
    (tmp_path / "splits" / "__MACOSX").mkdir()
    assert places.splits(tmp_path / "splits")["train"].notes == ()


def bytes_alone(table):
    return pyarrow.table({**table, "image": [image["bytes"] for image in table["image"]]})


def as_structs(table):
    return pyarrow.table(table)


def as_datasets_writes(table):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    numbers = [["cat", "dog"].index(name) for name in table["label"]]
    data = datasets.Dataset.from_dict(
        {**table, "label": numbers}, features=datasets.Features(features)
    )
    return data.data.table


@pytest.mark.parametrize("write", [bytes_alone, as_structs, as_datasets_writes])
def test_images_in_parquet_are_those_of_the_folder(write, pets, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    there = load(pets, size=16, augment="none", notes=quiet)
    files = there.train.images + there.sets["validation"].images
    files = sorted({*files})
    table = {
        "image": [{"bytes": Path(file).read_bytes(), "path": "x"} for file in files],
        "label": [file.split("/")[-2] for file in files],
    }
    pyarrow.parquet.write_table(write(table), tmp_path / "a.parquet")
    task = load(tmp_path / "a.parquet", size=16, augment="none", notes=quiet)
    assert task.labels == ("cat", "dog")
    for row in range(len(there.train)):
        assert torch.equal(task.train[row][0], there.train[row][0])


def test_images_that_are_judged_on_are_never_augmented(pets, tmp_path):
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "train").symlink_to(pets)
    (tmp_path / "both" / "test").symlink_to(pets)
    notes = []
    found = finding.find(tmp_path / "both", notes=quiet)
    trained = loading.Trained(targets.given(("cat", "dog"), 2, "classification"), draw=False)
    task = loading.task_of(found, None, loading.Reading(size=16), trained, notes.append)
    assert [*task.sets] == ["train", "test"]
    assert torch.equal(task.sets["train"][3][0], task.sets["test"][3][0])
    assert notes == ["12 of 12 rows of test are in the training set too"]
