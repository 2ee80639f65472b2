"""What is refused before anything is trained."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from helpers import (
    CLASSES,
    PLAIN,
    WIDTH,
    Scores,
    Table,
    assert_same,
    chain,
    config,
    fit,
    linear_chain,
    phased,
    tensors,
)
from torch.utils.data import IterableDataset, Subset, TensorDataset

import multiexit as mx

# What a method can't serve


def regressor(head=None):
    return linear_chain(head, classes=1)


def one_exit():
    return linear_chain(stages=1)


ANOTHER = r"can't serve.*1 output.*another policy.*policy="
REFUSED = {
    "entropy of one output": ("joint", regressor, ANOTHER),
    "uncertainty of one output": ("fastbert", regressor, ANOTHER),
    "confidence of one output": ("dbt", regressor, ANOTHER),
    "confident exits of one output": ("pcee", regressor, ANOTHER),
    "agreement of one output": ("pabee", regressor, ANOTHER),
    "the surest of one output": ("shallow-deep", regressor, ANOTHER),
    "temperatures of one output": ("right-tool", lambda: regressor("+mix"), "right-tool.*berxit"),
    "a budget of one output": ("msdnet", regressor, "'msdnet' needs at least 2 classes.*berxit"),
    "DeeBERT with one exit": ("deebert", one_exit, "1 exit.*give the model early exits"),
    "FastBERT with one exit": ("fastbert", one_exit, "1 exit.*give the model early exits"),
    "nobody to be certain": ("berxit", linear_chain, r"none: make it with head='pooler\+lte'"),
    "no cascade": ("ztw", linear_chain, r"make it with head='linear\+cascade'"),
    "no dev set for temperatures": ("right-tool", lambda: linear_chain("+mix"), "pass dev="),
    "no dev set for a budget": ("msdnet", linear_chain, "pass dev="),
}


def test_smoothing_of_labels_that_none_reads_is_warned_of():
    taught = phased({"topology": "last", "coefficients": mx.coefficients.teachers_only})
    with pytest.warns(UserWarning, match=r"label_smoothing=0.1 has no effect with 'phased'"):
        mx.Trainer(linear_chain(), taught, config(label_smoothing=0.1))


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_method_cannot_serve_is_refused_before_it_trains(case):
    name, make, message = REFUSED[case]
    model = make()
    before = tensors(model)
    train = Scores() if model.num_classes == 1 else Table()
    with pytest.raises(ValueError, match=message):
        fit(model, name, config(), train)
    assert_same(before, tensors(model))
    assert all(p.requires_grad for p in model.parameters())


def test_a_budget_that_no_network_like_this_can_keep_is_refused_before_it_trains():
    model = linear_chain()
    before = tensors(model)
    with pytest.raises(ValueError, match="can't be spent"):
        fit(model, mx.recipe("msdnet", speedup=50.0), config(), Table(), Table(10))
    assert_same(before, tensors(model))


# Data


def refused(message, train, model=None, settings=PLAIN, recipe="leebert", dev=None):
    model = model or chain()
    before = tensors(model)
    with pytest.raises(ValueError, match=message):
        fit(model, recipe, settings, train, dev)
    assert_same(before, tensors(model))


@pytest.mark.parametrize("label", [-1, CLASSES])
@pytest.mark.parametrize("known", [True, False])
def test_labels_outside_the_classes_stop_it_before_the_first_step(label, known):
    train = Table()
    train.labels[17] = label
    row = "row 17"
    if not known:  # the set has no `labels`: they are seen when they come
        train, row = TensorDataset(train.x, train.labels), "row"
    refused(re.escape(f"label {label} in {row}"), train, settings=config(batch_size=40))


def test_labels_must_be_integers():
    train = Table()
    train.labels = train.labels.float()
    refused("labels are torch.float32.*int64", train)


class Endless(IterableDataset):
    def __iter__(self):
        yield torch.zeros(WIDTH), 0


class Triples(Table):
    def __getitem__(self, row):
        return self.x[row], self.labels[row], row


class Unlabelled(Table):
    def __getitem__(self, row):
        return {"x": self.x[row]}


class Bare(Table):
    def __getitem__(self, row):
        return self.x[row]


class Asks(Table):
    def lengths(self):
        return [1] * len(self)


class Wants(Table):
    def collate(self, rows, padding):
        raise AssertionError(padding)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (Asks(), "lengths of Asks is a method, and must be a list"),
        (Wants(), "collate of Wants must take a list of rows and nothing else .*'padding'"),
        (Table(1), "at least 2 rows, got 1"),
        (Table(0), "at least 2 rows, got 0"),
        (
            [(torch.zeros(WIDTH), 0)] * 8,
            "Dataset or DataLoader.*list: put tensors into a .*TensorDataset",
        ),
        (Endless(), "Dataset"),
        (Triples(), r"a batch is \(inputs, labels\)"),
        (Unlabelled(), r"a batch is \(inputs, labels\).*keys \['x'\]"),
        (Bare(), r"a batch is \(inputs, labels\).*Tensor"),
    ],
    ids=[
        "lengths()",
        "collate(…)",
        "one row",
        "no row",
        "list",
        "iterable",
        "triples",
        "unlabelled",
        "bare",
    ],
)
def test_data_of_another_form_is_refused(train, message):
    refused(message, train)


def _mislabelled():
    rows = Table()
    rows.labels = torch.full((40,), 5)
    return rows


@pytest.mark.parametrize(
    ("dev", "words"), [(Subset(Table(), []), "empty"), (_mislabelled(), "label 5")]
)
def test_an_unusable_dev_set_is_refused_before_training(dev, words):
    refused(words, Table(), dev=dev)


def test_a_dev_set_of_one_label_is_told_where_the_metric_needs_several():
    rows, same = Scores(), Scores(6)
    same.labels = torch.ones(6)
    for dev in (Subset(Scores(), [3]), same):
        for metric in ("r2", None):
            with pytest.warns(UserWarning, match=r"dev set has no label but .* says nothing"):
                fit(
                    regressor("linear+lte"), "berxit", config(metric=metric, max_steps=1), rows, dev
                )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*says nothing")
        fit(regressor("linear+lte"), "berxit", config(metric="r2", max_steps=1), rows, Scores(6))
        one_class = Subset(Table(), [3])
        fit(linear_chain(), "joint", config(metric="accuracy", max_steps=1), Table(), one_class)


# Models, recipes and configurations


def test_a_topology_that_does_not_fit_is_refused_when_the_trainer_is_made():
    recipe = mx.recipes.leebert(topology=torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"4 exits.*\[4, 4\]"):
        mx.Trainer(chain(), recipe)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda seen: None, "must return a scalar tensor, .* got None"),
        (lambda seen: 0.1, "must return a scalar tensor, .* got 0.1"),
        (lambda seen: seen.logits_MBC[0].sum(-1), r"must return a scalar tensor, .* got \[1\]"),
    ],
)
def test_an_extra_loss_must_be_a_scalar_tensor(extra, message):
    with pytest.raises(ValueError, match=message):
        mx.Trainer(chain(), phased({"extra": extra}))


@dataclass(frozen=True)
class Cut(mx.gradients.Surgery):
    """Into what a function gives; at first it leaves the teachers' terms out."""

    into: Callable = lambda factors_MM: [factors_MM.diag().diag()]

    def split(self, factors_MM):
        return self.into(factors_MM)

    def merge(self, parts, shared):
        return list(parts[0])


def test_the_parts_of_a_surgery_must_add_up():
    mx.Trainer(chain(3), phased({"surgery": Cut()}))
    with pytest.raises(ValueError, match=r"Cut.split\(\) .* must sum to these"):
        mx.Trainer(chain(3), phased({"surgery": Cut(), "topology": "lae"}))


@pytest.mark.parametrize("into", [lambda _: [], lambda f: [f, f[0]], lambda f: [f.diag()]])
def test_a_surgery_has_parts_of_the_factors_shape(into):
    with pytest.raises(ValueError, match=r"Cut.split\(\) gives \[.* must have their shape"):
        mx.Trainer(chain(3), phased({"surgery": Cut(into)}))


def test_a_phase_with_nothing_to_train_is_refused():
    model = chain(exits=1)
    before = tensors(model)
    with pytest.raises(ValueError, match=r"phase 1 of 'phased' trains 'heads'.*1 exit"):
        fit(model, phased({}, {"train": "heads"}), config(), Table())
    assert_same(tensors(model), before)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda model, recipe: (model, "joint"), "recipe must be .* got 'joint'"),
        (lambda model, recipe: (model, mx.recipes.joint), "recipe must be .* got function"),
        (lambda model, recipe: (model, mx.TrainConfig(), recipe), "recipe must be .* TrainConfig"),
        (lambda model, recipe: (model.backbone, recipe), "model must be .* got "),
        (lambda model, recipe: (model, recipe, {"epochs": 3}), "config must be .* got dict"),
    ],
)
def test_what_is_no_model_recipe_or_configuration_is_named(parts, message):
    with pytest.raises(ValueError, match=message):
        mx.Trainer(*parts(chain(), mx.recipes.joint()))
