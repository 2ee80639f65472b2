"""Tables in memory, as other libraries hold them."""

import datasets
import pytest

from multiexit.data import load

TEXTS = [f"good film {row}" for row in range(20)]


def quiet(_):
    pass


def several(names, numbers):
    features = {
        "text": datasets.Value("string"),
        "labels": datasets.Sequence(datasets.ClassLabel(names=names)),
    }
    data = {"text": TEXTS, "labels": numbers}
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


@pytest.mark.parametrize("kind", ["memory", "parquet"])
def test_several_labels_are_called_as_the_set_calls_them(kind, tokenizer, tmp_path):
    splits = {
        "train": several(["z", "a", "m"], [[0], [0, 1]] * 10),
        "validation": several(["a", "m", "z"], [[2], [0, 2]] * 10),
    }
    source = datasets.DatasetDict(splits)
    if kind == "parquet":
        source = tmp_path
        for split, data in splits.items():
            data.to_parquet(str(tmp_path / f"{split}.parquet"))
    task = load(source, tokenizer, notes=quiet)
    assert task.labels == ("z", "a", "m")
    expected = [[1, 0, 0], [1, 1, 0]] * 10
    assert task.train.labels.tolist() == task.sets["validation"].labels.tolist() == expected
    other = datasets.DatasetDict(splits | {"validation": several(["a", "other"], [[0], [1]] * 10)})
    with pytest.raises(ValueError, match="row 1: a label 'other' that isn't among z, a, m"):
        load(other, tokenizer, notes=quiet)
