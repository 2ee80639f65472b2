"""Which rows make up which batch: D1 and D2, groups of like length, shares of processes."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import CLASSES, ROOT, Table, Watched, chain, config, fit
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import multiexit as mx
from multiexit.data import batches
from multiexit.data.order import chunks, group, shard, split_epoch

SIZES = st.integers(1, 300)
SEEDS = st.integers(0, 2**31)
quick = settings(deadline=None, max_examples=60)


def flat(lists):
    return [row for some in lists for row in some]


# D1 and D2


@quick
@given(size=st.integers(2, 300), seed=SEEDS, epoch=st.integers(0, 1000))
def test_halves_are_disjoint_and_cover_everything(size, seed, epoch):
    first, second = split_epoch(size, seed, epoch, halves=True)
    assert sorted(first + second) == list(range(size))
    assert len(first) - len(second) in (0, 1)
    assert (first, second) == split_epoch(size, seed, epoch, halves=True)


@quick
@given(size=SIZES, seed=SEEDS, epoch=st.integers(0, 1000))
def test_without_halves_both_are_the_whole_set(size, seed, epoch):
    first, second = split_epoch(size, seed, epoch, halves=False)
    assert sorted(first) == list(range(size))
    assert first == second


@quick
@given(seed=SEEDS, epoch=st.integers(0, 1000))
def test_each_epoch_and_each_seed_splits_anew(seed, epoch):
    here = set(split_epoch(200, seed, epoch, halves=True)[0])
    for other in (split_epoch(200, seed, epoch + 1, True), split_epoch(200, seed + 1, epoch, True)):
        common = len(here & set(other[0]))
        assert 25 < common < 75  # 50 are expected, 10 standard deviations either side


def test_a_row_is_as_likely_in_either_half():
    times = torch.zeros(40)
    for epoch in range(400):
        times[split_epoch(40, 7, epoch, halves=True)[0]] += 1
    assert times.min() > 150
    assert times.max() < 250


def test_the_split_is_the_same_in_another_process():
    code = "from multiexit.data.order import split_epoch; print(split_epoch(20, 3, 4, True))"
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == str(split_epoch(20, 3, 4, True))


# Groups


@quick
@given(
    order=st.lists(st.integers(0, 10_000), unique=True, max_size=400),
    batch=st.integers(1, 40),
    long=st.booleans(),
    seed=SEEDS,
)
def test_groups_hold_every_row_once_in_batches_of_one_size(order, batch, long, seed):
    lengths = {row: 1 + (row * 7919) % 100 for row in order} if long else None
    made = group(order, batch, lengths, seed, 0)
    assert sorted(flat(made)) == sorted(order)
    sizes = sorted((len(some) for some in made), reverse=True)
    assert len(sizes) == -(-len(order) // batch)
    assert all(size == batch for size in sizes[:-1])
    assert made == group(order, batch, lengths, seed, 0)
    if not long:
        assert flat(made) == order


@pytest.mark.parametrize("batch", [8, 32])
def test_rows_of_like_length_go_together(batch):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 128, (2000,), generator=generator).tolist()
    order = split_epoch(2000, 0, 0, halves=False)[0]

    def padding(made):
        return sum(len(some) * max(lengths[row] for row in some) for some in made) - sum(lengths)

    grouped, plain = (group(order, batch, some, 0, 0) for some in (lengths, None))
    assert padding(grouped) < 0.15 * padding(plain)


def test_batches_of_like_length_come_in_random_order_and_change_with_the_epoch():
    lengths = list(range(320))
    epochs = [
        group(split_epoch(320, 0, epoch, False)[0], 8, lengths, 0, epoch) for epoch in range(2)
    ]
    longest = [[max(lengths[row] for row in some) for some in made] for made in epochs]
    assert longest[0] != sorted(longest[0])
    assert longest[0] != sorted(longest[0], reverse=True)
    assert longest[0] != longest[1]
    # Only within stretches of 50 batches: which rows meet differs too, in a larger set.
    large = [
        group(split_epoch(2000, 0, epoch, False)[0], 8, list(range(2000)), 0, epoch)
        for epoch in range(2)
    ]
    assert {frozenset(some) for some in large[0]} != {frozenset(some) for some in large[1]}


# Shares of processes


@quick
@given(
    lists=st.lists(st.lists(st.integers(0, 999), min_size=1, max_size=40), max_size=8),
    world=st.integers(1, 9),
)
def test_shares_make_up_the_batch_and_are_of_one_size(lists, world):
    shares = [shard(lists, rank, world) for rank in range(world)]
    assert all(len(mine) == len(lists) for mine in shares)
    for index, batch in enumerate(lists):
        parts = [mine[index] for mine in shares]
        assert {len(part) for part in parts} == {-(-len(batch) // world)}
        joined = flat(parts)
        assert joined[: len(batch)] == batch
        assert joined[len(batch) :] == (batch * world)[: len(joined) - len(batch)]  # starts over


# What the loop reads


READS = {
    # rows, and how often D2 is drawn from in each of two epochs; D1 has 21 or 9 rows, in eights
    "clo-v2": (mx.recipes.leebert(cycle=2), 41, (1, 2)),
    "blo": (mx.recipe("leebert-blo"), 41, (3, 3)),
    "blo, D2 twice over": (mx.recipe("leebert-blo"), 17, (2, 2)),
    "slo": (mx.recipe("leebert-slo"), 41, (0, 0)),
    "joint": (mx.recipe("joint"), 41, (0, 0)),
}


@pytest.mark.parametrize("name", READS)
def test_an_epoch_reads_d1_once_and_d2_from_its_start(name):
    recipe, size, draws = READS[name]
    seen = []

    class Seen(Watched):
        def __getitems__(self, rows):
            seen.append(list(rows))
            return super().__getitems__(rows)

    fit(chain(), recipe, config(epochs=2, seed=5), Seen(Table(size)))
    for epoch, drawn in enumerate(draws):
        halves = split_epoch(size, 5, epoch, recipe.phases[0].learner.splits)
        first, second = (group(rows, 8, None, 5, epoch) for rows in halves)
        here = [seen.pop(0) for _ in range(len(first) + drawn)]
        assert [some for some in here if some in first] == first
        others = [some for some in here if some not in first]
        assert others == [second[i % len(second)] for i in range(drawn)]
    assert not seen


def test_long_texts_train_together():
    class Text(Table):
        lengths = [row % 10 for row in range(40)]  # noqa: RUF012

    seen = []

    class Seen(Watched):
        def __getitems__(self, rows):
            seen.append(sorted(rows))
            return super().__getitems__(rows)

    fit(chain(), "joint", config(epochs=1, batch_size=4), Seen(Text()))
    assert sorted(seen) == sorted([k, k + 10, k + 20, k + 30] for k in range(10))


# Batches read


def test_forms_of_a_batch():
    x, y = torch.zeros(2, 3), torch.tensor([0, 1])
    assert batches.unpack((x, y)) == ((x,), {}, y)
    assert batches.unpack([x, y]) == ((x,), {}, y)
    assert batches.unpack({"a": x, "labels": y}) == ((), {"a": x}, y)
    for bad in (x, (x,), (x, y, y), {"a": x}, (x, "labels"), None):
        with pytest.raises(ValueError, match="a batch is"):
            batches.unpack(bad)


@quick
@given(items=st.lists(st.integers(), max_size=30), size=st.integers(1, 9))
def test_chunks_keep_the_order(items, size):
    made = list(chunks(iter(items), size))
    assert flat(made) == items
    assert all(len(some) == size for some in made[:-1])
    assert all(made)


def test_a_loader_reads_long_rows_first_and_says_where_they_belong():
    class Text(Table):
        lengths = [row % 10 for row in range(40)]  # noqa: RUF012

    read, order = batches.loader(Text(), 8)
    labels = torch.cat([y for _, y in read])
    assert torch.equal(labels, Text().labels[order])
    assert [Text.lengths[row] for row in order] == sorted(Text.lengths, reverse=True)
    outputs = mx.collect(chain(), Text())
    assert torch.equal(outputs.labels_B, Text().labels)
    plain = mx.collect(chain(), DataLoader(Table(), 7))
    torch.testing.assert_close(outputs.logits_MBC, plain.logits_MBC)
    assert outputs.logits_MBC.shape == (4, 40, CLASSES)


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(2, 3), ["a", "b"]),
        [torch.zeros(2, 3), ("a", "b")],
        {"x": torch.zeros(2, 3), "labels": ["a", "b"]},
    ],
)
def test_labels_that_are_words_are_named(batch):
    with pytest.raises(ValueError, match=r"got words such as 'a': give class numbers"):
        batches.unpack(batch)


def test_weights_of_rows_are_no_part_of_a_batch():
    x, y = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"got 3 parts: .*weights of rows aren't read"):
        batches.unpack((x, y, torch.ones(2)))


@pytest.mark.parametrize(
    "batch", [np.zeros((2, 3)), (torch.zeros(2, 3), np.zeros(2)), {"labels": np.zeros(2)}]
)
def test_arrays_are_to_be_tensors(batch):
    with pytest.raises(ValueError, match=r"got an array: make tensors .*torch.from_numpy\(x\)"):
        batches.unpack(batch)
