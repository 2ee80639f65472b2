"""A `DataLoader`'s settings are kept, or refused by name."""

import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import CLASSES, WIDTH, Stopped, Table, assert_same, chain, config, fit, tensors
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

import multiexit as mx
from multiexit.data import loaders
from multiexit.data.batches import collate_of, labels_of, lengths_of
from multiexit.data.training_set import TrainingSet


class Logged(Table):
    """A table that notes which rows are read; before row number `stop` it ends the run."""

    def __init__(self, rows=40, stop=None):
        super().__init__(rows)
        self.read, self.stop = [], stop

    def __getstate__(self):
        return {"x": self.x, "labels": self.labels}

    def __getitem__(self, row):
        if len(self.read) == self.stop:
            raise Stopped
        self.read.append(int(row))
        return super().__getitem__(row)


def read_by(recipe="joint", rows=40, settings=None, make=DataLoader, **how) -> list[int]:
    """The rows in the order in which training read them."""
    data = Logged(rows)
    made = {name: value(data) if callable(value) else value for name, value in how.items()}
    fit(chain(2), recipe, settings or config(epochs=2), make(data, **made))
    return data.read


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def weighted(**how):
    return WeightedRandomSampler([1.0] * 20 + [19.0] * 20, 40, **how)


class Backwards(Sampler):
    """The rows from behind; in odd epochs from the front."""

    def __init__(self, rows=40):
        self.rows, self.epoch = rows, 0

    def __len__(self):
        return self.rows

    def __iter__(self):
        order = range(self.rows) if self.epoch % 2 else range(self.rows - 1, -1, -1)
        self.epoch += 1
        return iter(order)


class Groups(Sampler):
    """Batches of 3, 5 and 2 rows, drawn by numpy."""

    def __len__(self):
        return 3

    def __iter__(self):
        rows = np.random.permutation(40).tolist()
        yield from (rows[:3], rows[3:8], rows[8:10])


# In which order rows come

SAMPLERS = {
    "as they are": {"batch_size": 7},
    "sequential": {"batch_size": 7, "sampler": SequentialSampler},
    "with a generator": {"batch_size": 7, "shuffle": True, "generator": lambda _: generator()},
    "drop_last": {"batch_size": 7, "drop_last": True},
    "sampler's generator": {
        "batch_size": 7,
        "sampler": lambda data: RandomSampler(data, generator=generator()),
    },
    "weighted": {"batch_size": 8, "sampler": lambda _: weighted(generator=generator())},
    "with a state": {"batch_size": 9, "sampler": lambda _: Backwards()},
    "batches": {"batch_sampler": lambda _: BatchSampler(Backwards(), 6, True)},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_order_is_the_loaders_own(name):
    """Over two epochs, also where a generator or a state goes on."""
    wanted = Logged()
    made = {k: v(wanted) if callable(v) else v for k, v in SAMPLERS[name].items()}
    plain = DataLoader(wanted, **made)
    for _ in range(2):
        list(plain)
    assert read_by(**SAMPLERS[name]) == wanted.read


RANDOM = {
    "weighted": {"batch_size": 8, "sampler": lambda _: weighted()},
    "with replacement": {
        "batch_size": 8,
        "sampler": lambda data: RandomSampler(data, True, 24),
    },
    "a part": {"batch_size": 8, "sampler": lambda _: SubsetRandomSampler(range(5, 30))},
    "batches by numpy": {"batch_sampler": lambda _: Groups()},
    "shuffled": {"batch_size": 7, "shuffle": True, "drop_last": True},
}


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_drawn_at_random_comes_from_the_seed_and_the_epoch(name):
    how = RANDOM[name]
    torch.manual_seed(1)
    one = read_by(**how)
    torch.manual_seed(2)
    np.random.seed(5)
    assert read_by(**how) == one
    assert read_by(settings=config(epochs=2, seed=1), **how) != one
    half = len(one) // 2
    assert one[:half] != one[half:]


def test_a_weighted_sampler_balances_classes():
    read = read_by(settings=config(epochs=20), batch_size=10, sampler=lambda _: weighted())
    assert len(read) == 800
    assert np.mean(np.array(read) >= 20) == pytest.approx(0.95, abs=0.03)


def test_with_replacement_so_many_rows_come_as_were_asked_for():
    read = read_by(settings=config(epochs=1), **RANDOM["with replacement"])
    assert len(read) == 24
    read = read_by(settings=config(epochs=1), **RANDOM["a part"])
    assert sorted(read) == list(range(5, 30))


def test_batches_are_those_of_the_batch_sampler():
    seen = []

    def collate(rows):
        seen.append(len(rows))
        return default_collate(rows)

    loader = DataLoader(Table(), batch_sampler=Groups(), collate_fn=collate)
    trainer = mx.Trainer(chain(2), mx.recipes.joint(), config(epochs=2))
    history = trainer.fit(loader)
    assert seen == [3, 5, 2] * 2
    assert history.steps[-1]["step"] == 6
    assert trainer.config.batch_size == 5


def test_the_batch_size_is_the_loaders():
    for loader in (
        DataLoader(Table(), 10),
        DataLoader(Table(), batch_sampler=BatchSampler(Backwards(), 10, True)),
    ):
        trainer = mx.Trainer(chain(2), mx.recipes.joint(), config(epochs=1))
        assert trainer.fit(loader).steps[-1]["step"] == 4
        assert trainer.config.batch_size == 10


def test_unlabelled_rows_keep_their_own_loader():
    seen = []

    def collate(rows):
        seen.append(len(rows))
        return default_collate(rows)

    alone = DataLoader(Table(12), 6, collate_fn=collate)
    trainer = mx.Trainer(chain(2), mx.recipe("fastbert"), config(epochs=1))
    trainer.fit(DataLoader(Table(), 8, shuffle=True), unlabelled=alone)
    assert seen
    assert set(seen) == {6}


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_short_last_batch_is_dropped(shuffle):
    """One row alone would make batch norm fail."""
    rows = TensorDataset(torch.randn(33, 8), torch.randint(0, 2, (33,)))
    norm = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    model = mx.MultiExitModel(mx.wrap(nn.Sequential(norm, nn.Linear(4, 4))), 2)
    history = fit(model, "joint", config(), DataLoader(rows, 16, shuffle, drop_last=True))
    assert [row["step"] for row in history.epochs] == [2, 4]


# Beside D1 and D2


@pytest.mark.parametrize("name", [*SAMPLERS, *RANDOM])
def test_batches_are_dealt_to_d1_and_d2(name):
    """Each batch of an epoch to one of them, D1 has the odd one, and whose turn it is changes."""
    data = Table()
    how = {**SAMPLERS, **RANDOM}[name]
    loader = DataLoader(data, **{k: v(data) if callable(v) else v for k, v in how.items()})
    rows = TrainingSet(loader, CLASSES)
    if loaders.shuffles(loader):
        return
    for epoch in (0, 1, 0, 4):
        whole, same = rows.epoch(7, epoch, False, 8, 0, 1)
        assert whole == same
        first, second = rows.epoch(7, epoch, True, 8, 0, 1)
        assert len(first) == -(-len(whole) // 2)
        assert len(second) == len(whole) // 2
        assert sorted([*first, *second]) == sorted(whole)
        assert (first[0] == whole[0]) == (epoch % 2 == 0)


def test_leebert_trains_on_all_rows_over_two_epochs():
    recipe = mx.recipe("leebert-slo")
    for made in (recipe, mx.recipes.leebert(cycle=100)):
        assert set(read_by(made, batch_size=5)) == set(range(40))


# Going on after an interruption


@pytest.mark.parametrize("name", [*SAMPLERS, *RANDOM])
@pytest.mark.parametrize("recipe", ["joint", "leebert"])
def test_a_run_goes_on_with_the_order_that_it_had(name, recipe, tmp_path):
    how = {**SAMPLERS, **RANDOM}[name]

    def train(data, settings):
        made = {k: v(data) if callable(v) else v for k, v in how.items()}
        model = chain(2)
        fit(model, recipe, settings, DataLoader(data, **made))
        return tensors(model)

    settings = config(epochs=3, output=tmp_path / "whole", checkpoint_every=2)
    whole = train(Logged(), settings)
    broken = config(epochs=3, output=tmp_path / "broken", checkpoint_every=2)
    with pytest.raises(Stopped):
        train(Logged(stop=12 if "numpy" in name else 45), broken)
    resumed = config(epochs=3, output=tmp_path / "broken", checkpoint_every=2, resume=True)
    assert_same(train(Logged(), resumed), whole)


def test_another_order_is_another_run(tmp_path):
    settings = config(epochs=1, output=tmp_path)
    fit(chain(2), "joint", settings, DataLoader(Table(), 8))
    again = config(epochs=1, output=tmp_path, resume=True)
    with pytest.raises(ValueError, match="data train"):
        fit(chain(2), "joint", again, DataLoader(Table(), 8, sampler=Backwards()))


# Workers


def of_worker(worker):
    torch.utils.data.get_worker_info().dataset.training_set.dataset.offset = 100.0


class Offset(Table):
    offset = 0.0

    def __getitem__(self, row):
        return self.x[row] + self.offset, self.labels[row]


def test_workers_are_the_loaders():
    seen = []

    class Watching(nn.Linear):
        def forward(self, x):
            seen.append(float(x.mean()))
            return super().forward(x)

    model = mx.MultiExitModel(
        mx.wrap(nn.Sequential(Watching(WIDTH, 4), nn.Linear(4, 4)), input_shape=(WIDTH,)), CLASSES
    )
    loader = DataLoader(
        Offset(), 8, num_workers=1, worker_init_fn=of_worker, prefetch_factor=3, pin_memory=True
    )
    trainer = mx.Trainer(model, mx.recipes.joint(), config(max_steps=2))
    seen.clear()
    trainer.fit(loader)
    assert trainer.config.workers == 1
    assert len(seen) > 2
    assert min(seen[-2:]) > 90  # those before it are the trainer's own tries


# What can't be kept


class Endless(Sampler):
    def __iter__(self):
        while True:
            yield 0


class Long(Backwards):
    def __iter__(self):
        return iter([0] * (self.rows + 8))


class Short(Backwards):
    def __iter__(self):
        return iter(range(self.rows - 20))


class Counting(Long):
    def __iter__(self):
        while True:
            yield 0


class Outside(Backwards):
    def __iter__(self):
        return iter([0] * 39 + [40])


class Own(DataLoader):
    def __iter__(self):
        return islice(super().__iter__(), 2)


class Stream(IterableDataset):
    def __init__(self, rows=10):
        self.rows = Table(rows)

    def __iter__(self):
        return (self.rows[i] for i in range(len(self.rows)))


REFUSED = {
    "distributed": (
        lambda: DataLoader(Table(), 8, sampler=DistributedSampler(Table(), 2, 0)),
        "sampler=DistributedSampler",
    ),
    "distributed batches": (
        lambda: DataLoader(
            Table(),
            batch_sampler=BatchSampler(DistributedSampler(Table(), 2, 0), 4, False),
        ),
        "sampler=DistributedSampler",
    ),
    "no batches": (lambda: DataLoader(Table(), batch_size=None), "batch_size=None"),
    "endless": (lambda: DataLoader(Table(), 8, sampler=Endless()), "Endless has no length"),
    "endless with a length": (
        lambda: DataLoader(Table(), 8, sampler=Counting()),
        "Counting says that it has 5 batches, and drew more",
    ),
    "longer than it says": (lambda: DataLoader(Table(), 8, sampler=Long()), "drew more in epoch 0"),
    "shorter than it says": (lambda: DataLoader(Table(), 8, sampler=Short()), "drew 3 in epoch 0"),
    "outside": (
        lambda: DataLoader(Table(), 8, sampler=Outside()),
        "drew row 40; there are 0 to 39",
    ),
    "nothing": (
        lambda: DataLoader(Table(), 64, drop_last=True),
        "no batch of 40 rows with batch_size=64 and drop_last=True",
    ),
    "nothing in halves": (
        lambda: DataLoader(Table(), 32, shuffle=True, drop_last=True),
        "drop_last=True leaves no batch of 32 rows in each half of 40",
    ),
    "one batch for two halves": (lambda: DataLoader(Table(), 40), "at least 2 batches an epoch"),
    "own batches": (lambda: Own(Table(), 8), "a Own makes its batches in a way of its own"),
    "stream": (lambda: DataLoader(Stream(), 4), "rows can be counted.*Stream"),
    "mapping": (lambda: {"train": Table(), "test": Table()}, r"\['train', 'test'\].*one of them"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_named_before_anything_is_trained(name):
    make, message = REFUSED[name]
    model = chain(2)
    before = tensors(model)
    with pytest.raises(ValueError, match=message):
        fit(model, "leebert", config(), make())
    assert_same(tensors(model), before)


def test_what_changes_no_batch_is_let_be(recwarn):
    how = {"persistent_workers": True, "pin_memory": True, "in_order": False}
    runs = [
        fit(chain(2), "joint", config(), DataLoader(Table(), 8, True, num_workers=1, **more))
        for more in ({}, how)
    ]
    one, other = ([row["loss"] for row in run.steps] for run in runs)
    assert one == other
    assert not recwarn.list


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Subset(d, range(9)), DataLoader])
def test_labels_in_a_pair_of_tensors_are_checked_before_anything_is_trained(wrap):
    x, good = torch.randn(9, WIDTH), torch.arange(9) % CLASSES
    sets = [TensorDataset(x, y) for y in (good, good + 1, good[:, None])]
    fine, outside, column = (wrap(rows) for rows in sets)
    model = chain(2)
    before = tensors(model)
    for train, dev, message in (
        (outside, None, "the training set: label 3 in row 2"),
        (fine, outside, "the dev set: label 3 in row 2"),
        (column, None, r"the training set: labels have shape \(9, 1\).*one number a row"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(model, "joint", config(), train, dev)
    assert_same(tensors(model), before)


def test_what_a_collate_of_ones_own_makes_of_a_pair_is_not_guessed():
    def turned(rows):
        y, x = zip(*rows, strict=True)
        return torch.stack(x), torch.stack(y)

    y, x = torch.arange(9) % CLASSES, torch.randn(9, WIDTH)
    mine, wanted = chain(2), chain(2)
    loader = DataLoader(TensorDataset(y, x), 3, collate_fn=turned)
    fit(mine, "joint", config(epochs=1), loader)
    fit(wanted, "joint", config(epochs=1), DataLoader(TensorDataset(x, y), 3))
    assert_same(tensors(mine), tensors(wanted))


def test_a_dev_set_that_can_be_read_once_is_refused():
    dev = iter([default_collate([Table()[0], Table()[1]])])
    with pytest.raises(ValueError, match=r"dev is read each epoch.*list_iterator can be read once"):
        fit(chain(2), "joint", config(), Table(), dev)

    class Once(IterableDataset):
        def __init__(self):
            self.rows = iter([Table()[0], Table()[1]])

        def __iter__(self):
            return self.rows

    for dev in (Once(), DataLoader(Once(), 2)):
        with pytest.raises(ValueError, match=r"dev is read each epoch.*a Once can be read once"):
            fit(chain(2), "joint", config(), Table(), dev)


def test_batches_of_ones_own_are_for_one_process():
    rows = TrainingSet(DataLoader(Table(), batch_sampler=Groups()), CLASSES)
    with pytest.raises(ValueError, match="batch_sampler=Groups makes batches for one process"):
        rows.epoch(0, 0, False, 8, 0, 2)
    rows = TrainingSet(DataLoader(Table(), 8, sampler=Backwards()), CLASSES)
    shares = [rows.epoch(0, 0, False, 8, rank, 2)[0] for rank in range(2)]
    assert [a + b for a, b in zip(*shares, strict=True)] == [
        list(range(39, 23, -1)),
        list(range(23, 7, -1)),
        list(range(7, -1, -1)),
    ]


# Sets that are parts and sums of others


class Ragged(Dataset):
    """Rows of unequal length with a `collate` of their own."""

    lengths = [3 + row % 4 for row in range(12)]  # noqa: RUF012
    labels = torch.arange(12) % CLASSES

    def __len__(self):
        return 12

    def __getitem__(self, row):
        return torch.full((self.lengths[row],), float(row)), self.labels[row]

    def collate(self, rows):
        x, y = zip(*rows, strict=True)
        return torch.stack([row[:1].expand(WIDTH) for row in x]), torch.stack(y)


@pytest.mark.parametrize(
    "make",
    [
        Ragged,
        lambda: Subset(Ragged(), range(10)),
        lambda: Subset(Subset(Ragged(), range(11)), [3, 1, 7, 5]),
        lambda: ConcatDataset([Ragged(), Subset(Ragged(), [1, 2])]),
        lambda: Subset(ConcatDataset([Ragged(), Ragged()]), [0, 13, 20, 5]),
    ],
)
def test_parts_and_sums_keep_what_the_sets_offer(make):
    data = make()
    rows = [data[row] for row in range(len(data))]
    assert collate_of(data).__func__ is Ragged.collate
    assert lengths_of(data) == [len(x) for x, _ in rows]
    assert labels_of(data).tolist() == [int(y) for _, y in rows]
    for train in (data, DataLoader(data, 2, shuffle=True), DataLoader(data, 2)):
        fit(chain(2), "joint", config(epochs=1), train, data)
    for dev in (data, DataLoader(data, 2)):
        assert mx.collect(chain(2), dev).labels_B.tolist() == labels_of(data).tolist()


def test_rows_that_do_not_fit_together_are_refused_with_a_way_out():
    class Bare(Ragged):
        collate = staticmethod(default_collate)

    class Without(Dataset):
        __len__ = Ragged.__len__

        def __getitem__(self, row):
            return Ragged()[row]

    with pytest.raises(ValueError, match=r"rows can't be put into one batch.*collate_fn"):
        fit(chain(2), "joint", config(), Without())
    with pytest.raises(ValueError, match=r"parts of a ConcatDataset collate .* differently"):
        fit(chain(2), "joint", config(), ConcatDataset([Ragged(), Bare()]))


@pytest.mark.parametrize("make", [Stream, lambda: DataLoader(Stream(), 4)])
def test_a_stream_of_rows_may_be_the_dev_set(make):
    history = fit(chain(2), "joint", config(), Table(), make())
    assert len(history.epochs[0]["exits"]) == 2
    outputs = mx.collect(chain(2), make())
    assert outputs.labels_B.tolist() == Table(10).labels.tolist()
    wanted = mx.collect(chain(2), Table(10))
    torch.testing.assert_close(outputs.logits_MBC, wanted.logits_MBC)


# Batches by name


def test_a_dict_in_a_pair_is_passed_by_name():
    class Pairs(Table):
        def __getitem__(self, row):
            return {"x": self.x[row]}, self.labels[row]

    outputs = mx.collect(chain(2), Pairs())
    assert torch.equal(outputs.logits_MBC, mx.collect(chain(2), Table()).logits_MBC)
    one, two = chain(2), chain(2)
    fit(one, "joint", config(), Pairs(), Pairs())
    fit(two, "joint", config(), Table(), Table())
    assert_same(tensors(one), tensors(two))


class Named(Table):
    def __init__(self, *others, **changes):
        super().__init__(12)
        self.others, self.called = others, changes

    def __getitem__(self, row):
        made = {"x": self.x[row], "label": self.labels[row], **dict.fromkeys(self.others, row)}
        return {self.called.get(name, name): value for name, value in made.items()}


@pytest.mark.parametrize("called", ["label", "labels", "label_ids"])
def test_labels_by_any_of_their_names(called):
    named, paired = chain(2), chain(2)
    fit(named, "joint", config(epochs=1), Named(label=called), Named(label=called))
    fit(paired, "joint", config(epochs=1), Table(12), Table(12))
    assert_same(tensors(named), tensors(paired))


def test_columns_that_the_network_does_not_take_are_named_once():
    for run in (
        lambda: fit(chain(2), "joint", config(batch_size=4), Named("idx", "sentence")),
        lambda: mx.collect(chain(2), Named("idx", "sentence"), batch_size=4),
    ):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            run()
        texts = [(str(w.message), w.filename) for w in said if "left out" in str(w.message)]
        message = "columns that the network doesn't take are left out: idx, sentence; it takes x"
        assert [text for text, _ in texts] == [message]
        assert Path(texts[0][1]).parent in Path(__file__).parents  # not in the library


def test_an_input_that_is_missing_is_named():
    with pytest.raises(ValueError, match="takes x; a batch has pixels, labels, so x is missing"):
        fit(chain(2), "joint", config(), Named(x="pixels"))
