"""Every recipe: its loss written out as its paper has it, and a battery over all of them."""

import copy
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from helpers import Table, assert_same, chain, config, differences, fit, images, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import BertConfig, BertModel

import multiexit as mx
from multiexit import losses, recipes
from multiexit.data.batches import split_epoch
from multiexit.temperature import Constant, Rising

M, ROWS = 4, 40


def ce(logits, labels):
    return F.cross_entropy(logits, labels)


def kd(student, teacher, tau):
    """Eq. 2: τ² times the cross-entropy of softened predictions; the teacher is a constant."""
    soft = (teacher.detach() / tau).softmax(-1)
    return -(soft * (student / tau).log_softmax(-1)).sum(-1).mean() * tau**2


def eq_5(z, y, weights, teachers, tau):
    """LeeBERT's loss: weighted labels, and 1 / (M·|T(m)|) of the weighted teachers."""
    total = 0.0
    for m in range(M):
        total = total + weights[m][m] * ce(z[m], y)
        for t in teachers(m):
            total = total + weights[m][t] * kd(z[m], z[t], tau) / (M * len(teachers(m)))
    return total


def everyone_else(m):
    return [t for t in range(M) if t != m]


def later(m):
    return list(range(m + 1, M))


def the_last(m):
    return [M - 1] if m < M - 1 else []


def uniform():
    return [[1.0] * M for _ in range(M)]


def drawn():
    """LeeBERT-rand's weights, from the seed; whether they are random enough is tested elsewhere."""
    learner = recipes.recipe("leebert-rand").phases[0].learner
    return learner.weights(~torch.eye(M, dtype=torch.bool), seed=0)().tolist()


def joint(z, y):
    return sum(ce(z[m], y) for m in range(M))


def pabee(z, y):
    return sum((m + 1) * ce(z[m], y) for m in range(M)) / (M * (M + 1) / 2)


def shallow_deep(z, y, progress=0.0):
    # All stages cost the same here and all heads too, so C_m = 1/4, 2/4, 3/4.
    early = sum(min((m + 1) / M, 0.01 + progress * (m + 1) / M) * ce(z[m], y) for m in range(M - 1))
    return ce(z[M - 1], y) + early


def dbt(z, y, tau=1.0):
    labels = sum(ce(z[m], y) for m in range(M))
    teacher = sum(kd(z[m], z[M - 1], tau) for m in range(M - 1))
    return 10 / M * (0.5 * labels + 0.5 * teacher)


WRITTEN_OUT = {
    "leebert": lambda z, y: eq_5(z, y, uniform(), everyone_else, 1.0),
    "leebert-lle": lambda z, y: eq_5(z, y, uniform(), later, 1.0),
    "leebert-rand": lambda z, y: eq_5(z, y, drawn(), everyone_else, 1.0),
    "leebert-uniform": lambda z, y: eq_5(z, y, uniform(), everyone_else, 1.0),
    "leebert-slo": lambda z, y: eq_5(z, y, uniform(), everyone_else, 1.0),
    "leebert-blo": lambda z, y: eq_5(z, y, uniform(), everyone_else, 1.0),
    "leebert-clo-v1": lambda z, y: eq_5(z, y, uniform(), everyone_else, 1.0),
    "fastbert-clo-v2": lambda z, y: eq_5(z, y, uniform(), the_last, 1.0),
    "joint": joint,
    "pabee": pabee,
    "shallow-deep": shallow_deep,
    "dbt": dbt,
}
WITH_OPTIONS = {
    "leebert at τ = 4": (
        recipes.leebert(4.0),
        lambda z, y: eq_5(z, y, uniform(), everyone_else, 4.0),
    ),
    "fastbert-clo-v2 at τ = 3": (
        recipes.fastbert_clo_v2(3.0),
        lambda z, y: eq_5(z, y, uniform(), the_last, 3.0),
    ),
    "dbt at τ = 4": (recipes.dbt(4.0), lambda z, y: dbt(z, y, 4.0)),
    "dbt of the teacher alone": (
        recipes.dbt(1.0, mix=1.0),
        lambda z, y: 10 / M * sum(kd(z[m], z[M - 1], 1.0) for m in range(M - 1)),
    ),
}


def test_all_recipes_are_written_out():
    assert set(WRITTEN_OUT) == set(recipes.RECIPES)


@pytest.mark.parametrize("name", [*WRITTEN_OUT, *WITH_OPTIONS])
def test_the_loss_and_its_gradient_are_the_papers(name):
    """One step of plain SGD on one batch: the logged loss, and −lr times its gradient."""
    recipe, written_out = WITH_OPTIONS.get(name) or (mx.recipe(name), WRITTEN_OUT[name])
    model, train = chain(M), Table(ROWS)
    still = copy.deepcopy(model)
    rate = 0.5
    one_step = config(max_steps=1, batch_size=ROWS, momentum=0.0, lr=rate)
    history = fit(model, recipe, one_step, train)
    rows, _ = split_epoch(ROWS, 0, 0, recipe.phases[0].learner.splits)
    loss = written_out(list(still(train.x[rows])), train.labels[rows])
    assert history.steps[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    gradients = torch.autograd.grad(loss, list(still.parameters()), allow_unused=True)
    moved = zip(model.parameters(), still.parameters(), gradients, strict=True)
    for after, before, gradient in moved:
        wanted = before if gradient is None else before - rate * gradient
        torch.testing.assert_close(after, wanted, atol=1e-6, rtol=1e-5)


def test_shallow_deep_grows_by_the_epoch():
    model, train = chain(M), Table(ROWS)
    at_rest = config(epochs=5, batch_size=ROWS, lr=1e-12)
    history = fit(model, "shallow-deep", at_rest, train)
    z = list(model(train.x))
    wanted = [shallow_deep(z, train.labels, epoch / 5).item() for epoch in range(5)]
    assert [row["loss"] for row in history.steps] == pytest.approx(wanted, rel=1e-5)
    # By hand at the start, where all CE are about 1: 1 + 3 · 0.01 of them.
    ones = torch.zeros(M, 1, 2)
    by_hand = float(shallow_deep(list(ones), torch.tensor([0])))
    assert by_hand == pytest.approx(1.03 * 0.6931472)


# A rising temperature


def logits_with(p, rows=2):
    """Two classes, the larger with probability p, at a single exit."""
    return torch.tensor([[[p / (1 - p), 1.0]] * rows]).log()


def test_temperature_rises_by_hand():
    rule, device = Rising(factor=2.0, above=0.7), torch.device("cpu")
    tau = rule.start(device)
    assert float(tau) == 1.0
    # p = 0.9 has odds 9; at τ = 2 odds 3, p = 0.75; at τ = 4 odds √3, p = 0.634.
    seen = []
    for p in (0.6, 0.9, 0.9, 0.9, 0.6, 0.999):
        tau = rule.after(tau, logits_with(p))
        seen.append(float(tau))
    assert seen == [1.0, 2.0, 4.0, 4.0, 4.0, 8.0]  # 0.999: odds 999, at τ = 4 5.6, p = 0.85


def test_the_temperature_looks_at_the_last_exit_and_the_mean():
    rule, sure, unsure = Rising(), logits_with(0.9), logits_with(0.501)
    one = torch.tensor(1.0)
    assert float(rule.after(one, torch.cat([sure, unsure.new_zeros(1, 2, 2)]))) == 1.0  # p = 0.5
    assert float(rule.after(one, torch.cat([unsure.new_zeros(1, 2, 2), sure]))) == pytest.approx(
        1.05
    )
    mixed = torch.cat([logits_with(0.9, 1), logits_with(0.5, 1)], 1)
    assert float(Rising(above=0.69).after(one, mixed)) == pytest.approx(1.05)
    assert float(Rising(above=0.71).after(one, mixed)) == 1.0


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), steps=st.integers(1, 30))
def test_a_rising_temperature_never_falls(seed, steps):
    generator = torch.Generator().manual_seed(seed)
    rule, tau = Rising(), torch.tensor(1.0)
    for _ in range(steps):
        after = rule.after(tau, 5 * torch.randn(2, 3, 4, generator=generator))
        assert float(after) == pytest.approx(float(tau) * (1.05 if after > tau else 1.0))
        tau = after


def test_dbt_trains_at_the_temperature_it_has_reached():
    """The network rests; the temperature, so the loss, goes up as long as the teacher is sure."""
    model, train = chain(M), Table(8)
    with torch.no_grad():
        model.heads[-1].linear.weight.mul_(8)
    history = fit(model, "dbt", config(epochs=40, batch_size=8, lr=1e-12), train)
    z, tau = [logits.detach() for logits in model(train.x)], 1.0
    for row in history.steps:
        assert row["loss"] == pytest.approx(float(dbt(z, train.labels, tau)), rel=1e-4)
        if float((z[-1] / tau).softmax(-1).amax(-1).mean()) > 0.5:
            tau *= 1.05
    assert 1.05**2 < tau < 1.05**39, "this teacher must become unsure on the way"


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_must_be_above_zero(value):
    with pytest.raises(ValueError, match="temperature"):
        Constant(value)
    with pytest.raises(ValueError, match="temperature"):
        mx.recipe("leebert", temperature=value)


# Battery


class Text(torch.utils.data.Dataset):
    """Random tokens of 3 to 9, padded by batch."""

    def __init__(self, rows=24):
        generator = torch.Generator().manual_seed(0)
        self.lengths = [3 + row % 7 for row in range(rows)]
        self.ids = [torch.randint(5, 60, (size,), generator=generator) for size in self.lengths]
        self.labels = torch.randint(3, (rows,), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, row):
        return {"input_ids": self.ids[row], "labels": self.labels[row]}

    def collate(self, rows):
        ids = [row["input_ids"] for row in rows]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        labels = torch.stack([row["labels"] for row in rows])
        return {"input_ids": padded, "attention_mask": (padded > 0).long(), "labels": labels}


def text_model():
    torch.manual_seed(1)
    sizes = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
    }
    return mx.MultiExitModel(mx.wrap(BertModel(BertConfig(**sizes))), 3)


def image_model():
    torch.manual_seed(1)
    backbone = mx.cifar_resnet(20, in_channels=1, size=8)
    return mx.MultiExitModel(backbone, 3, exits=[0, 4, 8])


def image_rows():
    return images(24)


KINDS = {"text": (text_model, Text), "images": (image_model, image_rows)}
LEARN = {
    "leebert",
    "leebert-lle",
    "leebert-slo",
    "leebert-blo",
    "leebert-clo-v1",
    "fastbert-clo-v2",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_trains_saves_loads_and_predicts(name, kind, tmp_path):
    make, rows = KINDS[kind]
    model, train = make(), rows()
    before = tensors(model)
    recipe = mx.recipe(name)
    run = config(max_steps=5, batch_size=4, lr=0.05, output=tmp_path, clip=1.0)
    history = fit(model, recipe, run, train)

    assert len(history.steps) == 5
    assert all(torch.tensor(row["loss"]).isfinite() for row in history.steps)
    still = {k for k, v in model.named_parameters() if torch.equal(v, before[k])}
    idle = {k for k in still if "embeddings" not in k}
    assert not idle, f"not trained: {idle}"
    weights = [W_MM for _, W_MM in history.weights]
    assert len(weights) == (5 if name in LEARN else 0)
    assert all(a != b for a, b in pairwise(weights))
    assert all(w != 1 for row in weights[:1] for w in row if w is not None)

    again = mx.MultiExitModel.from_pretrained(tmp_path / "model")
    assert_same(tensors(again), tensors(model))
    assert again.policy == recipe.policy
    outputs = mx.collect(model, rows() if kind == "text" else rows().for_evaluation())
    batch = train.collate([train[row] for row in range(6)]) if kind == "text" else None
    inputs = (
        {k: v for k, v in batch.items() if k != "labels"}
        if batch
        else {"x": train.for_evaluation().__getitems__(range(6))[0]}
    )
    prediction = again.predict(again.policy, **inputs)
    wanted_B = mx.simulate(recipe.policy, outputs.logits_MBC[:, :6])
    assert torch.equal(prediction.exit_B, wanted_B)
    rows_B = torch.arange(6)
    torch.testing.assert_close(
        prediction.logits_BC, outputs.logits_MBC[wanted_B, rows_B], atol=1e-4, rtol=1e-4
    )


def test_clo_v2_without_in_cycle_updates_moves_omega_at_every_cth_step_alone():
    learner = mx.weights.CLO2(cycle=3, in_cycle=False)
    history = fit(chain(), mx.recipes.leebert(learner=learner), config(epochs=4), Table())
    values = [W_MM for _, W_MM in history.weights]
    moved = [step for step in range(1, 12) if values[step] != values[step - 1]]
    assert moved == [2, 5, 8, 11]
    assert all(w == 1 for row in values[0] for w in row)


# Recipes as data


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_a_recipe_says_where_it_comes_from(name):
    made = mx.recipe(name)
    assert made.name == name
    assert len(made.paper) > 20
    assert made.section
    assert 2016 <= made.year <= 2022
    assert made.summary
    assert recipes.RECIPES[name].__doc__
    assert isinstance(made.policy, mx.ExitPolicy)
    assert mx.recipe(name) == made or name in ("dbt",)  # a closure of its own


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match=r"no recipe 'leeberd'.*leebert-clo-v1"):
        mx.recipe("leeberd")
    with pytest.raises(ValueError, match=r"pabee.*temperature"):
        mx.recipe("pabee", temperature=2.0)
    with pytest.raises(ValueError, match="mix"):
        mx.recipe("dbt", mix=1.5)
    with pytest.raises(ValueError, match="cycle"):
        mx.recipe("leebert", cycle=0)
    with pytest.raises(ValueError, match="'all', 'last' or 'heads'"):
        mx.Phase(train="trunk")
    with pytest.raises(ValueError, match="at least 1 epoch"):
        mx.Phase(epochs=0)
    with pytest.raises(ValueError, match="no phases"):
        replace(mx.recipe("joint"), phases=())
    with pytest.raises(ValueError, match="divergence"):
        mx.recipe("leebert", divergence="js")


def test_a_recipe_of_ones_own():
    """Labels for all, the last exit teaches by KL, twice as strong, the first exit counts half."""

    def half(teaches_MM, progress, shares_M):
        A_MM = losses.coefficients(teaches_MM) * 2
        A_MM[0, 0] = 0.5
        return A_MM

    phase = mx.Phase("last", half, divergence="kl", temperature=Constant(2.0))
    recipe = replace(mx.recipe("joint"), name="own", phases=(phase,))
    model, train = chain(M), Table(ROWS)
    z, y = [logits.detach() for logits in model(train.x)], train.labels
    order = split_epoch(ROWS, 0, 0, halves=False)[0]
    assert sorted(order) == list(range(ROWS))
    wanted = 0.5 * ce(z[0], y) + 2 * sum(ce(z[m], y) for m in range(1, M))
    for m in range(M - 1):
        kl = F.kl_div((z[m] / 2).log_softmax(-1), (z[-1] / 2).softmax(-1), reduction="batchmean")
        wanted = wanted + 2 / M * 4 * kl
    history = fit(model, recipe, config(max_steps=1, batch_size=ROWS), train)
    assert history.steps[0]["loss"] == pytest.approx(float(wanted), rel=1e-5)


def test_shallow_deeps_head_learns_how_to_pool():
    torch.manual_seed(0)
    backbone = mx.cifar_resnet(20, in_channels=1, size=8)
    model = mx.MultiExitModel(backbone, 3, exits=[0, 4, 8], head="mixed-pool")
    before = tensors(model)
    fit(model, "shallow-deep", config(max_steps=3), images())
    changed = {k for k, v in model.named_parameters() if not torch.equal(v, before[k])}
    assert "heads.0.alpha" in changed


def test_two_runs_of_a_recipe_share_nothing():
    recipe = mx.recipe("leebert")
    first, second = chain(), chain()
    one = fit(first, recipe, config(), Table())
    two = fit(second, recipe, config(), Table())
    assert_same(tensors(first), tensors(second))
    assert not differences(one.steps, two.steps)
