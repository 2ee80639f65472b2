"""Rows that are several labels or numbers, and soft labels: trained by what users type."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from helpers import PLAIN, Table, chain, config, fit, tensors
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate
from torchvision.transforms import v2

import multiexit as mx
from multiexit.data.tasks import TaskData
from multiexit.model.folder import SETTINGS
from multiexit.recipes import RECIPES
from multiexit.training import experiment

C = 3


class Labelled(Table):
    """The same rows with several labels, or numbers."""

    def __init__(self, problem, rows=40):
        super().__init__(rows)
        rule = torch.randn(self.x.shape[1], C, generator=torch.Generator().manual_seed(99))
        truth = self.x @ rule
        self.labels = (truth > 0).float() if problem == "multi-label" else truth


def several(problem, head=None, exits=4):
    return mx.MultiExitModel(chain(exits).backbone, C, head=head, problem=problem)


@pytest.mark.parametrize("problem", ["multi-label", "regression"])
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_several_decisions_or_refuses_first(name, problem, tmp_path):
    """And what it trained is saved, loaded and run by its own policy, as its outputs say."""
    recipe = mx.recipe(name)
    head = "linear" if recipe.head == "attention" else recipe.head
    if head and head.startswith("own-pooler"):
        head = head.replace("own-pooler", "linear")
    data = Labelled(problem)
    settings = config(max_steps=4, log_every=1, output=tmp_path)
    if head and head.endswith("+cascade"):
        with pytest.raises(ValueError, match=r"'\+cascade' votes .* the problem is"):
            several(problem, head)
        return
    model = several(problem, head)
    before = tensors(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            history = fit(model, recipe, settings, data, data)
    except ValueError as refused:
        why = str(refused)
    else:
        why = ""
    if why:
        one_class = name in ("embedding", "beem", "cosee")
        assert (problem == "regression" and "regression" in why) or one_class
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        return
    assert problem == "multi-label" or name == "berxit"
    assert all(torch.tensor(row["loss"]).isfinite() for row in history.steps)
    again = mx.MultiExitModel.from_pretrained(tmp_path / "model", backbone=model.backbone)
    assert again.problem == problem
    outputs = mx.collect(again, data)
    exit_B, answer_BC = outputs.answers(again.policy)
    prediction = again.predict(again.policy, data.x)
    assert torch.equal(prediction.exit_B, exit_B)
    torch.testing.assert_close(prediction.logits_BC, answer_BC)


def test_the_last_exits_loss_is_what_torch_would_train_on():
    """One step of SGD on the joint loss, by hand."""
    data = Labelled("multi-label", rows=8)
    model, mine = several("multi-label", exits=2), several("multi-label", exits=2)
    fit(model, "joint", config(max_steps=1, batch_size=8, class_weights=(1, 2, 4)), data)
    loss = sum(
        F.binary_cross_entropy_with_logits(z, data.labels, pos_weight=torch.tensor([1.0, 2, 4]))
        for z in mine(data.x)
    )
    loss.backward()
    with torch.no_grad():
        for p in mine.parameters():
            p -= PLAIN.lr * p.grad
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("problem", ["multi-label", "regression"])
def test_training_learns_several_decisions(problem):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(6, 32), nn.ReLU()), nn.Sequential(nn.Linear(32, 32))]
    model = mx.MultiExitModel(mx.wrap(nn.Sequential(*layers)), C, problem=problem)
    policy = mx.MaxProb(0.9) if problem == "multi-label" else mx.Patience(1, tolerance=0.5)
    recipe = mx.recipe("joint" if problem == "multi-label" else "pabee")
    recipe = mx.Recipe(**{**vars(recipe), "policy": policy})
    settings = config(epochs=15, lr=0.05 if problem == "multi-label" else 0.02, early_stopping=4)
    fit(model, recipe, settings, Labelled(problem, 200), Labelled(problem, 200))
    scores = mx.exit_scores(mx.collect(model, Labelled(problem, 200)))
    assert min(row["score"] for row in scores) > 0.9


# Soft labels


class Digits(Dataset):
    """Images [1, 8, 8] of digits."""

    def __init__(self, rows):
        digits = load_digits()
        self.x = torch.tensor(digits.images[rows] / 16, dtype=torch.float32).unsqueeze(1)
        self.labels = torch.tensor(digits.target[rows])

    def __len__(self):
        return len(self.x)

    def __getitem__(self, row):
        return self.x[row], self.labels[row]


def small_net():
    torch.manual_seed(0)
    stages = [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU()),
        nn.Sequential(nn.Linear(64, 64), nn.ReLU()),
    ]
    return mx.MultiExitModel(mx.wrap(nn.Sequential(*stages), input_shape=(1, 8, 8)), 10)


def test_mixup_and_cutmix_in_a_collate_fn_train_with_plain_dev_rows():
    mix = v2.RandomChoice([v2.MixUp(num_classes=10), v2.CutMix(num_classes=10)])
    train = DataLoader(
        Digits(slice(400)),
        batch_size=32,
        shuffle=True,
        collate_fn=lambda b: mix(*default_collate(b)),
    )
    assert next(iter(train))[1].shape == (32, 10)
    model, dev = small_net(), Digits(slice(400, 700))
    settings = config(epochs=4, lr=0.005, optimizer="adamw", label_smoothing=0.1)
    history = fit(model, "leebert-uniform", settings, train, dev)
    scores = mx.exit_scores(mx.collect(model, dev))
    assert scores[-1]["accuracy"] > 0.5
    assert len(history.steps) == 4 * 13


def test_what_is_no_share_is_refused_with_its_row():
    x, shares = torch.randn(40, 6), torch.full((40, 3), 1 / 3)
    shares[7] = torch.tensor([0.5, 0.5, 0.5])
    data = TensorDataset(x, shares)
    with pytest.raises(ValueError, match=r"the training set: labels \[N, 3\] .* row 7 .* 1.5"):
        fit(chain(), "joint", config(), data)
    plain = TensorDataset(x, torch.full((40, 3), 1 / 3))
    with pytest.raises(ValueError, match="the dev set: labels are shares"):
        fit(chain(), "joint", config(), plain, plain)


# Weights of classes, and batches


def test_a_batch_is_weighed_by_its_own_rows_and_batches_by_their_number():
    """As `TrainConfig.class_weights` says, and other than over all rows at once."""
    rows, weights = Table(11), (1.0, 5.0, 20.0)
    losses = {}
    for size, accumulation in ((11, 1), (4, 3)):
        changes = {"batch_size": size, "accumulation": accumulation, "lr": 1e-30, "max_steps": 1}
        history = fit(chain(2), "joint", config(class_weights=weights, **changes), rows)
        losses[size] = history.steps[0]["loss"]
    logits_MBC = chain(2)(rows.x)
    whole = [F.cross_entropy(z, rows.labels, torch.tensor(weights)) for z in logits_MBC]
    assert losses[11] == pytest.approx(float(sum(whole)), rel=1e-5)
    assert losses[4] != pytest.approx(losses[11], rel=1e-3)


def test_weights_of_other_classes_are_refused_before_training():
    with pytest.raises(ValueError, match="class_weights has 2 numbers, for 3 classes"):
        mx.Trainer(chain(), mx.recipe("joint"), config(class_weights=(1, 2)))
    model = several("regression")
    recipe = mx.Recipe(**{**vars(mx.recipe("pabee")), "policy": mx.FixedExit(1)})
    with pytest.raises(ValueError, match="no classes to smooth or to weigh"):
        mx.Trainer(model, recipe, config(label_smoothing=0.1))


# Folders


def test_a_run_of_another_problem_is_not_gone_on_with(tmp_path):
    data = Labelled("multi-label")
    settings = config(max_steps=2, output=tmp_path)
    fit(several("multi-label"), "joint", settings, data)
    recipe = mx.Recipe(**{**vars(mx.recipe("joint")), "policy": mx.FixedExit(1)})
    again = config(max_steps=2, output=tmp_path, resume=True)
    with pytest.raises(
        ValueError, match=r"model problem \('multi-label' there, 'regression' here\)"
    ):
        fit(several("regression"), recipe, again, data)


@pytest.mark.parametrize(("classes", "usual"), [(3, "classification"), (1, "regression")])
def test_a_folder_that_doesnt_tell_its_problem_is_read(classes, usual, tmp_path):
    model = mx.MultiExitModel(mx.cifar_resnet(20), classes)
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    assert settings.pop("problem") == usual
    (tmp_path / SETTINGS).write_text(json.dumps(settings))
    assert mx.MultiExitModel.from_pretrained(tmp_path).problem == usual
    for problem, message in (("several", "problem is 'several'"), (3, "problem is 3")):
        (tmp_path / SETTINGS).write_text(json.dumps({**settings, "problem": problem}))
        with pytest.raises(ValueError, match=message):
            mx.MultiExitModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("problem", ["multi-label", "regression"])
def test_parts_of_a_model_keep_its_problem(problem, tmp_path):
    model = mx.MultiExitModel(mx.cifar_resnet(20), 4, problem=problem)
    model.save_pretrained(tmp_path)
    for other in (
        mx.MultiExitModel.from_pretrained(tmp_path),
        mx.keep_exits(model, [0, 2]),
        mx.static.single_exit(model),
    ):
        assert other.problem == problem


def trained_on(rows, settings, head=None):
    """A model of three exits, trained as the command line trains on numbers."""
    sets, kind = {"dev": rows}, {"kind": "image"}
    task = TaskData("own", rows, sets, C, "pearson_spearman", None, kind, "regression")
    recipe = replace(mx.recipe("joint"), policy=mx.FixedExit(0))
    return experiment.train(task, chain(3).backbone, recipe, settings, head=head)[0]


@pytest.mark.parametrize(("least", "step"), [(300_000, 20_000), (-7, 0.001), (0, 1)])
@pytest.mark.parametrize("head", ["linear", "linear+mix"])
def test_numbers_of_any_size_are_learned(head, least, step):
    """Prices, and hundredths: new heads begin at the labels' mean and spread."""
    rows = Labelled("regression", 200)
    rows.labels = least + step * rows.labels
    settings = config(optimizer="adamw", lr=1e-2, batch_size=50, epochs=60, clip=1.0)
    model = trained_on(rows, settings, head)
    outputs = mx.collect(model, rows)
    error_MC = (outputs.logits_MBC - rows.labels).square().mean(1)
    assert (error_MC < 0.7 * rows.labels.var(0)).all()


def test_numbers_too_small_for_the_learning_rate_are_told():
    rows = Labelled("regression", 40)
    rows.labels = 1e-6 * rows.labels
    with pytest.warns(UserWarning, match="labels vary by .* give labels in another unit"):
        trained_on(rows, config(epochs=1))
