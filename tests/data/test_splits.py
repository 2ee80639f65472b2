"""Held-out parts, label checks, row numbers and shards."""

import pytest
import torch

from multiexit.data.images import ImageDataset
from multiexit.data.sources import read_shard, shards
from multiexit.data.splits import holdout, row_numbers
from multiexit.losses.labels import check_labels


def images(labels: list[int], augment: bool = False) -> ImageDataset:
    """A split whose image i is filled with i, so that rows can be told apart."""
    rows = torch.arange(len(labels), dtype=torch.uint8)
    pixels = rows[:, None, None, None].expand(-1, 3, 4, 4).contiguous()
    return ImageDataset(pixels, torch.tensor(labels), (0.0,) * 3, (1.0,) * 3, augment)


class Scores:
    """The least that `holdout` needs, with float labels."""

    def __init__(self, labels: torch.Tensor):
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices):
        return Scores(self.labels[indices])

    def for_evaluation(self):
        return self


def rows_of(split: ImageDataset) -> list[int]:
    return split.images[:, 0, 0, 0].tolist()


def test_holdout_keeps_shares_and_order():
    split = images([0] * 50 + [1] * 30 + [2] * 20)
    rest, held = holdout(split, 0.2)
    assert held.labels.bincount().tolist() == [10, 6, 4]
    assert rest.labels.bincount().tolist() == [40, 24, 16]
    assert sorted(rows_of(rest) + rows_of(held)) == list(range(100))
    assert rows_of(rest) == sorted(rows_of(rest))
    assert rows_of(held) == sorted(rows_of(held))


def test_holdout_depends_on_the_seed_alone():
    split = images([0, 1] * 50)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = rows_of(holdout(split, 0.3, seed=5)[1])
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert first == rows_of(holdout(split, 0.3, seed=5)[1])
    assert first != rows_of(holdout(split, 0.3, seed=6)[1])


def test_holdout_of_scores_is_plain_random():
    rest, held = holdout(Scores(torch.linspace(0, 5, 50)), 0.1)
    assert (len(rest), len(held)) == (45, 5)
    assert torch.cat([rest.labels, held.labels]).unique().numel() == 50


def test_held_out_part_is_not_augmented():
    rest, held = holdout(images([0, 1] * 10, augment=True), 0.5)
    assert rest.augment
    assert not held.augment


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_holdout_refuses_fractions(fraction):
    with pytest.raises(ValueError, match=r"fraction to hold out must be a number in \(0, 1\)"):
        holdout(images([0, 1] * 10), fraction)


def test_holdout_refuses_an_empty_part():
    with pytest.raises(ValueError, match="leaves 4 and 0 rows"):
        holdout(images([0, 1, 2, 3]), 0.1)


def test_good_labels_pass():
    check_labels(torch.tensor([0, 1, 2]), 3, "train")
    check_labels(torch.tensor([0.5, -3.0]), 1, "train")
    check_labels(torch.tensor([], dtype=torch.int64), 3, "train")


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1, 3], 3, "train: label 3 in row 2 .* 0 to 2"),
        ([0, -1, -1], 2, "label -1 in row 1 .* 2 bad labels"),
        ([0.0, float("nan")], 2, "label nan in row 1"),
        ([0.0, 0.5], 2, "label 0.5 in row 1"),
        ([1.0, float("nan")], 1, "label nan in row 1 .* finite"),
        ([float("inf")], 1, "label inf in row 0"),
        ([0.0, 1.0], 2, r"float32; they must be int64"),
        ([0, 1], 1, r"int64; they must be float32"),
    ],
)
def test_bad_labels_are_named(labels, classes, message):
    with pytest.raises(ValueError, match=message):
        check_labels(torch.tensor(labels), classes, "train")


def test_row_numbers():
    assert row_numbers([2, 0, 2], 3).tolist() == [2, 0, 2]
    assert row_numbers(torch.tensor([1], dtype=torch.int32), 3).dtype == torch.int64
    assert row_numbers([], 3).tolist() == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([3], "row 3 is not there"),
        ([0, -1], "row -1 is not there"),
        ([0.5], "whole numbers"),
        ([True, False, True], "mask"),
        ([[0]], "flat list"),
    ],
)
def test_bad_row_numbers(rows, message):
    with pytest.raises(ValueError, match=message):
        row_numbers(rows, 3)


def test_shards_in_order(tmp_path):
    for name in ("train-00001-of-00002", "train-00000-of-00002", "test-00000-of-00001"):
        (tmp_path / f"{name}.parquet").touch()
    assert [file.name[:11] for file in shards(tmp_path, "train")] == ["train-00000", "train-00001"]
    assert shards(tmp_path, "validation") == []
    assert shards(tmp_path / "nowhere", "train") == []


def test_a_missing_shard_is_noticed(tmp_path):
    (tmp_path / "train-00001-of-00003.parquet").touch()
    with pytest.raises(ValueError, match=r"1 files .* promise 3"):
        shards(tmp_path, "train")


def test_damaged_parquet_is_named(tmp_path):
    file = tmp_path / "train-00000-of-00001.parquet"
    file.write_bytes(b"PAR1 cut short")
    with pytest.raises(ValueError, match=r"train-00000-of-00001.parquet: not a readable parquet"):
        read_shard(file, ["label"])
