"""Rows drawn by their classes, and mixed images: against loops over rows."""

from collections import Counter
from dataclasses import replace
from itertools import chain as joined

import numpy as np
import pytest
import torch
from helpers import (
    CLASSES,
    Stopped,
    Table,
    Text,
    Watched,
    assert_same,
    chain,
    config,
    convnet,
    differences,
    fit,
    images,
    saved_state,
    tensors,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

import multiexit as mx
from multiexit.data.mixing import Mixing
from multiexit.data.order import balance
from multiexit.data.training_set import TrainingSet
from multiexit.training.training_pass import TrainingPass


class Skewed(Table):
    """Of one class a ninth of the rows that it has elsewhere."""

    def __init__(self):
        super().__init__(200)
        kept = (self.labels > 0) | (torch.arange(200) % 9 == 0)
        self.x, self.labels = self.x[kept], self.labels[kept]


class Seen(Watched):
    """Notes the class of each row that is read."""

    def __init__(self, inner):
        super().__init__(inner)
        self.classes = []

    def __getitems__(self, rows):
        self.classes += self.labels[list(rows)].tolist()
        return super().__getitems__(rows)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 99))
def test_each_class_has_its_part_and_no_row_is_drawn_twice_more_than_another(classes, seed):
    rows = list(range(len(classes)))[::-1]
    drawn = balance(rows, np.array(classes), seed, 0)
    assert len(drawn) == len(rows)
    by_class = Counter(classes[row] for row in drawn)
    counts = [by_class[kind] for kind in {*classes}]
    assert max(counts) - min(counts) <= 1
    times = Counter(drawn)
    for kind in {*classes}:
        own = [times[row] for row in rows if classes[row] == kind]
        assert max(own) - min(own) <= 1


@pytest.mark.parametrize("recipe", ["joint", "leebert"])
def test_classes_are_equally_frequent_in_training(recipe):
    frequency = Counter(Skewed().labels.tolist())
    assert min(frequency.values()) < 0.25 * max(frequency.values())
    seen = Seen(Skewed())
    settings = config(sampling="balanced", epochs=4 if recipe == "joint" else 8)
    fit(chain(), recipe, settings, seen)
    counts = np.array([*Counter(seen.classes).values()])
    assert counts.sum() >= 4 * len(Skewed())
    assert counts.max() / counts.min() < 1.05


def test_halves_share_no_row_and_the_order_goes_by_seed_and_epoch():
    data = TrainingSet(Skewed(), CLASSES, balanced=True)
    first, second = data.epoch(0, 0, True, 8, 0, 1)
    assert not {*joined(*first)} & {*joined(*second)}
    assert data.epoch(0, 0, True, 8, 0, 1) == (first, second)
    assert data.epoch(0, 1, True, 8, 0, 1)[0] != first
    assert data.epoch(1, 0, True, 8, 0, 1)[0] != first


def test_balanced_rows_are_still_grouped_by_length_and_shared_out():
    text = Text(240)
    text.labels = (torch.arange(240) % 8 == 0).long()
    data = TrainingSet(text, CLASSES, balanced=True)
    parts = [data.epoch(0, 0, False, 8, rank, 2)[0] for rank in range(2)]
    for one, other in zip(*parts, strict=True):
        lengths = [text.lengths[row] for row in one + other]
        assert max(lengths) - min(lengths) <= 1
    assert sum(int(text.labels[row]) for part in parts for batch in part for row in batch) == 120


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (DataLoader(Table(), 8, sampler=SequentialSampler(Table())), "order of its own"),
        (DataLoader(Table(), 8), "order of its own"),
        (TensorDataset(*[torch.rand(9, 6)] * 3), "it has none"),
        (TensorDataset(torch.rand(9, 6), torch.full((9, CLASSES), 1 / 3)), r"shares of classes"),
    ],
)
def test_rows_without_known_classes_or_with_an_order_are_refused(data, words):
    with pytest.raises(ValueError, match=words):
        fit(chain(), "joint", config(sampling="balanced"), data)


@pytest.mark.parametrize(
    ("settings", "classes", "problem", "words"),
    [
        ({"sampling": "balanced"}, 1, None, "regression: leave it out"),
        ({"sampling": "balanced"}, 3, "multi-label", "one class a row"),
        ({"sampling": "balanced"}, None, "embedding", "one class a row"),
        ({"mixup": 0.2}, 3, None, "reads x"),
        ({"cutmix": 1.0}, 1, None, "regression has none"),
    ],
)
def test_what_these_do_not_go_with_is_refused_at_once(settings, classes, problem, words):
    model = mx.MultiExitModel(chain().backbone, classes, problem=problem)
    name = "embedding" if problem == "embedding" else "joint"
    recipe = replace(mx.recipe(name), policy=mx.FixedExit(0))
    with pytest.raises(ValueError, match=words):
        mx.Trainer(model, recipe, config(**settings))


def test_classes_are_balanced_once():
    with pytest.raises(ValueError, match="class_weights would count"):
        config(sampling="balanced", class_weights=(1, 2, 3))


# Mixing


class Noted(mx.Callback):
    """The loss matrices that training reported, by step."""

    def __init__(self):
        self.rows = []

    def on_step(self, run, row):
        self.rows.append(row)


@pytest.mark.parametrize("mixes", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_training_learns_from_the_mixed_rows(monkeypatch, mixes, smoothing):
    """Each exit's own loss, and what a student pays, are loops over the mixed images and labels."""
    batches, matrices = [], []
    mix, losses = Mixing.__call__, TrainingPass.forward

    def noted_mix(self, batch):
        mixed = mix(self, batch)
        batches.append((batch, mixed))
        return mixed

    def noted_losses(self, batch, tau):
        found = losses(self, batch, tau)
        matrices.append((batch, found.logits_MBC.detach(), found.L_MM.detach()))
        return found

    monkeypatch.setattr(Mixing, "__call__", noted_mix)
    monkeypatch.setattr(TrainingPass, "forward", noted_losses)
    settings = config(max_steps=3, label_smoothing=smoothing, accumulation=2, **mixes)
    fit(convnet(dropout=0.0), "leebert-uniform", settings, images())
    assert len(batches) == 6 - 1  # the epoch ends within the third step
    for ((x, y), (mixed, q)), (seen, logits_MBC, L_MM) in zip(batches, matrices, strict=True):
        assert torch.equal(seen[0], mixed)  # all terms are of the mixed images
        B = len(x)
        share = float((q[0] * F.one_hot(y, CLASSES)[0]).sum()) if y[0] != y[-1] else None
        for b in range(B):  # λ is the label's own part, and that of its pixels
            own, other = F.one_hot(y, CLASSES)[b].float(), F.one_hot(y, CLASSES)[b - 1].float()
            if share is not None:
                torch.testing.assert_close(q[b], share * own + (1 - share) * other)
            kept = (mixed[b] == x[b]) | (mixed[b] == x[b - 1])
            if share is not None and not kept.all():  # mixup
                torch.testing.assert_close(mixed[b], share * x[b] + (1 - share) * x[b - 1])
        for i, logits_BC in enumerate(logits_MBC):
            log_p = logits_BC.log_softmax(-1)
            wanted = 0.0
            for b in range(B):
                for c in range(CLASSES):
                    target = (1 - smoothing) * float(q[b, c]) + smoothing / CLASSES
                    wanted -= target * float(log_p[b, c]) / B
            assert float(L_MM[i, i]) == pytest.approx(wanted, rel=1e-4)
            for j, teacher_BC in enumerate(logits_MBC):
                if i != j:
                    paid = -(teacher_BC.softmax(-1) * log_p).sum(-1).mean()
                    scale = float(L_MM[i, j]) / float(paid)  # τ² of τ = 1
                    assert scale == pytest.approx(1, rel=1e-4)


def test_d2_stays_unmixed(monkeypatch):
    seen = []
    losses = TrainingPass.forward

    def noted(self, batch, tau):
        seen.append((torch.is_grad_enabled(), batch[1].ndim))
        return losses(self, batch, tau)

    monkeypatch.setattr(TrainingPass, "forward", noted)
    fit(convnet(), "leebert", config(mixup=0.5, epochs=4), images())
    assert {ndim for grad, ndim in seen if grad} == {2}
    assert {ndim for grad, ndim in seen if not grad} >= {1}


@pytest.mark.parametrize("recipe", ["leebert-hyper", "berxit", "romebert", "fastbert", "l2w-den"])
def test_every_kind_of_loss_takes_mixed_labels(recipe):
    model = convnet(head="linear" if recipe == "fastbert" else mx.recipe(recipe).head)
    history = fit(model, recipe, config(mixup=0.3, cutmix=1.0), images(), images(24))
    assert all(np.isfinite(row["loss"]) for row in history.steps)


def test_rows_of_a_dict_and_several_labels_are_mixed():
    torch.manual_seed(0)
    x, labels = torch.rand(4, 1, 3, 3), torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]])
    mixed = Mixing(0.5, None, 2)({"pixel_values": x, "label": labels, "id": torch.arange(4)})
    assert sorted(mixed) == ["id", "labels", "pixel_values"]
    share = float(mixed["labels"][0, 0])
    torch.testing.assert_close(mixed["labels"][1], torch.tensor([1 - share, share]))
    torch.testing.assert_close(mixed["pixel_values"][1], share * x[1] + (1 - share) * x[0])
    for other in (torch.rand(4, 1, 3, 3), (x.byte(), labels), {"a": x, "b": x, "labels": labels}):
        with pytest.raises(ValueError, match="mixup and cutmix mix batches"):
            Mixing(0.5, None, 2)(other)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_run_goes_on_exactly(tmp_path, workers):
    def run(folder, data, resume=False, workers=0):
        settings = config(
            *(), sampling="balanced", mixup=0.3, cutmix=1.0, ema=0.8, output=folder,
            checkpoint_every=2, resume=resume, workers=workers,
        )  # fmt: skip
        model = convnet()
        fit(model, "leebert", settings, data)
        return tensors(model), saved_state(folder)

    whole, state = run(tmp_path / "whole", images(60))
    with pytest.raises(Stopped):
        run(tmp_path / "cut", Watched(images(60), 5))
    resumed, other = run(tmp_path / "cut", images(60), resume=True, workers=workers)
    assert_same(whole, resumed)
    state["run"] = other["run"] = None
    assert differences(state, other) == []
