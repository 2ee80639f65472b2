"""GLUE from TSV, parquet and the hub; texts as a split."""

import copy
import os
import shutil
import warnings
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AlbertTokenizer, BertTokenizer, DistilBertTokenizer

from multiexit.data.glue import TASKS, TextDataset, find_task, load
from multiexit.data.glue_files import read_tsv

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh\"'.,", "##a", "##b"]

HEADERS = {
    "cola": "source\tlabel\toriginal_label\tsentence",
    "sst2": "sentence\tlabel",
    "mrpc": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\t"
    "sentence1\tsentence2\tscore",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "mnli": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t"
    "sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "qnli": "index\tquestion\tsentence\tlabel",
    "rte": "index\tsentence1\tsentence2\tlabel",
}
LABEL_COLUMN = dict.fromkeys(TASKS, "label") | {
    "mrpc": "Quality",
    "stsb": "score",
    "qqp": "is_duplicate",
    "mnli": "gold_label",
}
TEXT_COLUMNS = {
    "cola": ["sentence"],
    "sst2": ["sentence"],
    "mrpc": ["#1 String", "#2 String"],
    "qqp": ["question1", "question2"],
    "qnli": ["question", "sentence"],
} | {name: ["sentence1", "sentence2"] for name in ("stsb", "mnli", "rte")}

TEXTS = ["a b c", 'a "b', "d . e f", "g"]
PAIRS = ["c \" d '", "e", "a b", "h g f e d"]
LABELS = {name: [0, 1, 1, 0] for name in TASKS} | {"stsb": [0.0, 5.0, 2.5, 3.75]}
LABELS["mnli"] = [0, 1, 2, 0]

DATA = os.environ.get("MULTIEXIT_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="MULTIEXIT_DATA is not set")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> BertTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    return BertTokenizer.from_pretrained(folder)


def written(name: str, label: float) -> str:
    """The label as the TSV has it."""
    if name in ("mnli", "qnli", "rte"):
        return TASKS[name].labels[label]
    return str(label)


def tsv(name: str, labelled: bool = True) -> list[str]:
    """The lines of a small file in a task's classic layout."""
    header = HEADERS[name].split("\t")
    if not labelled:
        header = ["index"] + [c for c in header if c not in (LABEL_COLUMN[name], "index")]
    lines = [] if name == "cola" and labelled else ["\t".join(header)]
    for row, label in enumerate(LABELS[name]):
        cells = dict.fromkeys(header, f"x{row}")
        cells |= dict(zip(TEXT_COLUMNS[name], (TEXTS[row], PAIRS[row]), strict=False))
        if labelled:
            cells[LABEL_COLUMN[name]] = written(name, label)
        lines.append("\t".join(cells[column] for column in header))
    return lines


def write_tsv(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, labelled in (("train", True), ("dev", True), ("test", False)):
        suffixes = ("_matched", "_mismatched") if name == "mnli" and split != "train" else ("",)
        for suffix in suffixes:
            text = "\n".join(tsv(name, labelled)) + "\n"
            (folder / f"{split}{suffix}.tsv").write_text(text, encoding="utf-8")
    return folder


def table(name: str, labels: list[float]) -> dict[str, list]:
    columns = dict(zip(TASKS[name].columns, (TEXTS, PAIRS), strict=False))
    return columns | {"label": labels, "idx": list(range(len(labels)))}


def hub_splits(name: str) -> dict[str, dict[str, list]]:
    suffixes = ("_matched", "_mismatched") if name == "mnli" else ("",)
    hidden = [-1.0 if name == "stsb" else -1] * 4
    splits = {"train": table(name, LABELS[name])}
    for suffix in suffixes:
        splits[f"validation{suffix}"] = table(name, LABELS[name])
        splits[f"test{suffix}"] = table(name, hidden)
    return splits


def write_parquet(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, columns in hub_splits(name).items():
        pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return folder


def check_split(split: TextDataset, name: str, tokenizer, labelled: bool = True) -> None:
    """The split holds the rows above, tokenised as the tokenizer does one by one."""
    assert len(split) == 4
    for row in range(4):
        pair = PAIRS[row] if len(TASKS[name].columns) == 2 else None
        for field, values in tokenizer(TEXTS[row], pair).items():
            assert split[row][field].tolist() == values
    if labelled:
        assert split.labels.tolist() == LABELS[name]
    elif name == "stsb":
        assert split.labels.isnan().all()
    else:
        assert split.labels.tolist() == [-1] * 4
    assert split.labels.dtype == (torch.float32 if name == "stsb" else torch.int64)


def check_glue(glue, name: str, tokenizer) -> None:
    assert glue.task is TASKS[name]
    check_split(glue.train, name, tokenizer)
    check_split(glue.dev, name, tokenizer)
    check_split(glue.test, name, tokenizer, labelled=False)
    assert (glue.dev_mismatched is not None) == (name == "mnli")
    if glue.dev_mismatched is not None:
        check_split(glue.dev_mismatched, name, tokenizer)


# The tasks


def test_tasks_are_those_of_the_paper():
    assert list(TASKS) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"]
    assert [TASKS[name].num_classes for name in TASKS] == [2, 2, 2, 1, 2, 3, 2, 2]
    metrics = {name: task.metric for name, task in TASKS.items()}
    assert metrics == dict.fromkeys(("sst2", "mnli", "qnli", "rte"), "accuracy") | {
        "mrpc": "accuracy_f1",
        "qqp": "accuracy_f1",
        "cola": "matthews",
        "stsb": "pearson_spearman",
    }


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("SST-2", "sst2"), ("STS-B", "stsb"), ("MRPC", "mrpc"), ("CoLA", "cola"), ("sst_2", "sst2")],
)
def test_spellings(spelling, name):
    assert find_task(spelling).name == name


@pytest.mark.parametrize("name", ["wnli", "imdb", "", None])
def test_unknown_task_lists_the_known(name):
    with pytest.raises(ValueError, match=r"no GLUE task .* cola, sst2, mrpc"):
        find_task(name)


# The sources


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("write", [write_tsv, write_parquet])
def test_folder(write, name, tmp_path, tokenizer):
    check_glue(load(name, tokenizer, write(tmp_path, name)), name, tokenizer)


@pytest.mark.parametrize("name", TASKS)
def test_hub(name, tmp_path, tokenizer, monkeypatch):
    asked = []

    def load_dataset(*args):
        asked.append(args)
        splits = {key: datasets.Dataset.from_dict(rows) for key, rows in hub_splits(name).items()}
        return datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    check_glue(load(TASKS[name].folder, tokenizer), name, tokenizer)
    assert asked == [("nyu-mll/glue", name)]


def test_hub_out_of_reach(tokenizer, monkeypatch):
    def load_dataset(*args):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match=r"no network\. .*data_dir.*gluebenchmark"):
        load("mrpc", tokenizer)


@pytest.mark.parametrize("place", ["", "MRPC", "mrpc", "glue/MRPC", "glue/mrpc"])
@pytest.mark.parametrize("write", [write_tsv, write_parquet])
def test_places(write, place, tmp_path, tokenizer):
    write(tmp_path / place, "mrpc")
    check_glue(load("mrpc", tokenizer, str(tmp_path)), "mrpc", tokenizer)


def test_missing_data_says_where_and_how(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError) as caught:
        load("sst2", tokenizer, tmp_path / "nowhere")
    for part in ("SST-2", str(tmp_path / "nowhere" / "glue" / "SST-2"), "hub", "gluebenchmark"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["mrpc", "mnli"])
@pytest.mark.parametrize("write", [write_tsv, write_parquet])
def test_missing_dev_set(write, name, tmp_path, tokenizer):
    write(tmp_path, name)
    for file in [*tmp_path.glob("dev*"), *tmp_path.glob("validation*")]:
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"(dev|validation)"):
        load(name, tokenizer, tmp_path)


def test_test_set_may_be_missing(tmp_path, tokenizer):
    (write_tsv(tmp_path, "rte") / "test.tsv").unlink()
    assert load("rte", tokenizer, tmp_path).test is None


# TSV files


@pytest.mark.parametrize("name", ["cola", "mrpc"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n"], ids=["no newline", "newline", "blank line"])
def test_tsv_variants(name, mark, newline, end, tmp_path):
    file = tmp_path / "train.tsv"
    file.write_bytes(mark + (newline.join(tsv(name)) + end.replace("\n", newline)).encode())
    rows = read_tsv(TASKS[name], file)
    assert rows.texts == TEXTS
    assert rows.pairs == (PAIRS if name == "mrpc" else None)
    assert rows.labels == LABELS[name]


def test_only_newlines_end_a_line(tmp_path):
    file = tmp_path / "train.tsv"
    odd = "a\u2028b\x85c\x0cd\x1ce"
    file.write_bytes(f"sentence\tlabel\n{odd}\t1\n".encode())
    assert read_tsv(TASKS["sst2"], file).texts == [odd]


BAD_TSV = {
    "short line": ("sst2", "sentence\tlabel\na\t1\nb\n", "line 3: 1 fields .* expected 2"),
    "long line": ("rte", f"{HEADERS['rte']}\n0\ta\tb\tc\tentailment\n", "line 2: 5 fields"),
    "blank line inside": ("sst2", "sentence\tlabel\n\na\t1\n", "line 2: 1 fields"),
    "unknown class": ("sst2", "sentence\tlabel\na\t2\n", "line 2: unknown label '2', expected 0"),
    "class by number": ("rte", f"{HEADERS['rte']}\n0\ta\tb\t1\n", "'1', expected entailment or"),
    "empty class": ("sst2", "sentence\tlabel\na\t\n", "line 2: unknown label ''"),
    "score too high": ("stsb", f"{HEADERS['stsb']}\n{'x	' * 9}5.1\n", "'5.1', expected a score"),
    "score nan": ("stsb", f"{HEADERS['stsb']}\n{'x	' * 9}nan\n", "line 2: unknown label 'nan'"),
    "score word": ("stsb", f"{HEADERS['stsb']}\n{'x	' * 9}high\n", "unknown label 'high'"),
    "another task": ("mrpc", "sentence\tlabel\na\t1\n", "line 1: no column '#1 String' in .*MRPC"),
    "cola with header": ("cola", f"{HEADERS['cola']}\n", "line 1: unknown label 'label'"),
    "empty": ("sst2", "", "no rows"),
    "only a header": ("sst2", "sentence\tlabel\n", "no rows"),
    "cola empty": ("cola", "\n", "no rows"),
    "only malformed": ("qqp", f"{HEADERS['qqp']}\na\tb\n", "none of 1 lines has 6 fields"),
    "latin-1": ("sst2", b"sentence\tlabel\na\t1\ncaf\xe9\t0\n", "line 3: not UTF-8"),
}


@pytest.mark.parametrize("case", BAD_TSV)
def test_bad_tsv_names_file_and_line(case, tmp_path):
    name, content, message = BAD_TSV[case]
    file = tmp_path / "train.tsv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"train\.tsv.*{message}"):
        read_tsv(TASKS[name], file)


def test_qqp_drops_malformed_lines_with_a_warning(tmp_path):
    lines = tsv("qqp")
    lines[2:2] = ["7\t1\t2\tbroken here", "\tand goes on\t0"]
    (tmp_path / "train.tsv").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match="dropped 2 malformed lines"):
        rows = read_tsv(TASKS["qqp"], tmp_path / "train.tsv")
    assert rows == (TEXTS, PAIRS, LABELS["qqp"])


# Parquet files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": [0, 1, 2, 0]}, "label 2 in row 2"),
        ({"label": [0, -1, 1, 0]}, "label -1 in row 1"),
        ({"label": ["0", "1", "1", "0"]}, "label '0' in row 0 is not a number"),
        ({"label": [0, None, 1, 0]}, "column label is empty in row 1"),
        ({"sentence1": ["a", None, "b", "c"]}, "column sentence1 is empty in row 1"),
        ({"sentence1": [1, 2, 3, 4]}, r"texts\[0\] is 1"),
        ({"sentence1": []}, "no column sentence1"),
        ({name: [] for name in ("sentence1", "sentence2", "label", "idx")}, "no rows"),
    ],
)
def test_bad_parquet(change, message, tmp_path, tokenizer):
    columns = table("rte", LABELS["rte"]) | change
    if change == {"sentence1": []}:
        del columns["sentence1"]
    write_parquet(tmp_path, "rte")
    pq.write_table(pa.table(columns), tmp_path / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match=message):
        load("rte", tokenizer, tmp_path)


# Texts as a split


def many(tokenizer, rows: int = 37) -> TextDataset:
    texts = [" ".join("abcdefgh"[: 1 + row % 8]) for row in range(rows)]
    pairs = [" ".join("hgfedcba"[: 1 + row % 5]) for row in range(rows)]
    return TextDataset.from_texts(tokenizer, texts, pairs, list(range(rows)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_collate_is_the_tokenizers_padding(side, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "padding_side", side)
    monkeypatch.setattr(tokenizer, "_pad_token_type_id", 3)
    data = many(tokenizer)
    rows = [data[row] for row in (3, 0, 12)]
    batch = data.collate(rows)
    fields = [{k: v.tolist() for k, v in row.items() if k != "labels"} for row in rows]
    expected = tokenizer.pad(fields, return_tensors="pt")
    assert set(batch) == {*expected, "labels"}
    assert 3 in batch["token_type_ids"]
    for name, values in expected.items():
        assert torch.equal(batch[name], values)
    assert batch["labels"].tolist() == [3, 0, 12]


def test_data_loader(tokenizer):
    data = many(tokenizer)
    batches = list(DataLoader(data, batch_size=8, collate_fn=data.collate))
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == list(range(37))
    tokens = torch.cat([batch["attention_mask"].sum(1) for batch in batches])
    assert tokens.tolist() == data.lengths
    assert all(
        batch["input_ids"].shape[1] == batch["attention_mask"].sum(1).max() for batch in batches
    )


def test_chunks_change_nothing(tokenizer, monkeypatch):
    whole = many(tokenizer)
    monkeypatch.setattr("multiexit.data.token_cache.CHUNK", 5)
    parts = many(tokenizer)
    assert whole.lengths == parts.lengths
    assert all(torch.equal(whole.fields[name], parts.fields[name]) for name in whole.fields)


def test_subset_of_a_subset(tokenizer):
    data = many(tokenizer)
    part = data.subset([5, 30, 2]).subset(torch.tensor([2, 0]))
    assert isinstance(part, TextDataset)
    assert part.labels.tolist() == [2, 5]
    assert part.lengths == [data.lengths[2], data.lengths[5]]
    assert torch.equal(part[1]["input_ids"], data[5]["input_ids"])
    assert len(data.subset([])) == 0


def test_long_rows_are_cut(tokenizer):
    data = TextDataset.from_texts(tokenizer, ["a b c d e f", "a"], max_length=5)
    assert data.lengths == [5, 3]
    assert data[0]["input_ids"].tolist() == tokenizer("a b c")["input_ids"]


def test_albert_tells_the_texts_of_a_pair_apart():
    data = TextDataset.from_texts(AlbertTokenizer(), ["a b"], ["c"])
    types = data[0]["token_type_ids"].tolist()
    assert set(types) == {0, 1}
    assert types == sorted(types)


def test_fields_are_the_tokenizers_own(tokenizer):
    assert set(many(tokenizer).fields) == set(tokenizer("a", "b"))
    distil = DistilBertTokenizer(vocab=tokenizer.get_vocab())
    assert set(many(distil).fields) == {"input_ids", "attention_mask"}


def test_texts_alone(tokenizer):
    data = TextDataset.from_texts(tokenizer, ["a b", "c"])
    assert data.labels.tolist() == [-1, -1]
    assert len(TextDataset.from_texts(tokenizer, [])) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "a b"}, "texts is one string"),
        ({"texts": ["a", None]}, r"texts\[1\] is None"),
        ({"texts": ["a", "b"], "pairs": ["a"]}, "1 pairs for 2 texts"),
        ({"texts": ["a", "b"], "labels": [0]}, "1 labels for 2 texts"),
        ({"texts": ["a"], "labels": [[[0, 1]]]}, "labels"),
        ({"texts": ["a"], "max_length": 2}, "max_length=2 .* adds 2 special tokens"),
        ({"texts": ["a"], "max_length": 10**31}, "max_length=10"),
    ],
)
def test_bad_texts(arguments, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        TextDataset.from_texts(tokenizer, **arguments)


def test_tokenizer_without_padding(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match=r"set tokenizer\.pad_token = .*\.save_pretrained"):
        TextDataset.from_texts(tokenizer, ["a"])


# Real data


@needs_data
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("SST-2", (67349, 872, 1821)),
        ("MRPC", (3668, 408, 1725)),
        ("CoLA", (8551, 1043, 1063)),
        ("RTE", (2490, 277, 3000)),
        ("STS-B", (5749, 1500, 1379)),
    ],
)
def test_real_sizes(name, sizes):
    folder = Path(str(DATA)) / "glue" / name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        splits = [
            read_tsv(find_task(name), folder / f"{split}.tsv", labelled=split != "test")
            for split in ("train", "dev", "test")
        ]
    assert tuple(len(rows.texts) for rows in splits) == sizes
    assert all(all(rows.texts) and all(rows.pairs or ["-"]) for rows in splits)


@needs_data
@pytest.mark.parametrize(
    ("name", "header", "text", "pair", "label"),
    [
        ("SST-2", 1, 0, None, 1),
        ("MRPC", 1, 3, 4, 0),
        ("CoLA", 0, 3, None, 1),
        ("RTE", 1, 1, 2, 3),
        ("STS-B", 1, 7, 8, 9),
    ],
)
def test_real_rows_against_naive_reading(name, header, text, pair, label, tokenizer):
    task = find_task(name)
    content = (Path(str(DATA)) / "glue" / name / "dev.tsv").read_bytes().decode("utf-8-sig")
    rows = [line.split("\t") for line in content.split("\n")[header:] if line]
    dev = load(name, tokenizer, DATA).dev
    expected = tokenizer(
        [row[text] for row in rows],
        None if pair is None else [row[pair] for row in rows],
        truncation=True,
        max_length=128,
    )
    assert [dev[row]["input_ids"].tolist() for row in range(len(dev))] == expected["input_ids"]
    if task.labels is None:
        assert dev.labels.tolist() == torch.tensor([float(row[label]) for row in rows]).tolist()
    elif name == "RTE":
        assert [task.labels[i] for i in dev.labels.tolist()] == [row[label] for row in rows]
    else:
        assert dev.labels.tolist() == [int(row[label]) for row in rows]


@needs_data
def test_real_folder_of_one_task(tokenizer, tmp_path):
    shutil.copytree(Path(str(DATA)) / "glue" / "MRPC", tmp_path / "anything")
    assert len(load("mrpc", tokenizer, tmp_path / "anything").dev) == 408
