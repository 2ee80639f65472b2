"""Every recipe: its loss written out as its paper has it, and a battery over all of them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from helpers import (
    CLASSES,
    Table,
    Text,
    assert_same,
    chain,
    config,
    differences,
    fit,
    images,
    saved_state,
    tensors,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

import multiexit as mx
from multiexit import policies, recipes
from multiexit.data.order import split_epoch
from multiexit.losses import coefficients, topology
from multiexit.losses.temperature import Constant, Rising

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


def shallow_deep(z, y, progress=1.0):
    # All stages cost the same here and all heads too, so C_m = 1/4, 2/4, 3/4.
    early = sum(min((m + 1) / M, 0.01 + progress * (m + 1) / M) * ce(z[m], y) for m in range(M - 1))
    return ce(z[M - 1], y) + early


def dbt(z, y, tau=1.0):
    labels = sum(ce(z[m], y) for m in range(M))
    teacher = sum(kd(z[m], z[M - 1], tau) for m in range(M - 1))
    return 10 / M * (0.5 * labels + 0.5 * teacher)


def last(z, y):
    return ce(z[M - 1], y)


def early(z, y):
    return sum(ce(z[m], y) for m in range(M - 1))


def kl(student, teacher, tau=1.0):
    """KL(teacher ‖ student) of softened answers, the mean over rows; the teacher is a constant."""
    p, q = (teacher.detach() / tau).softmax(-1), (student / tau).softmax(-1)
    return (p * (p.log() - q.log())).sum(-1).mean()


def students(z, y):
    return sum(kl(z[m], z[M - 1]) for m in range(M - 1))


def romebert_early(z, y, mix=0.9, tau=3.0, scale=1.0):
    return sum(
        (1 - mix) * ce(z[m], y) + mix * scale * tau**2 * kl(z[m], z[M - 1], tau)
        for m in range(M - 1)
    )


def weighed_rows(z, y, epsilon=0.3, over_exits=False):
    """L2W-DEN's loss: each row's loss at each exit has a weight, from a network that is drawn."""
    learner = mx.recipe("l2w-den").phases[0].learner
    first, _, second = learner.weights(topology.none(M), seed=0).net
    t = []
    for row in range(len(y)):
        own = torch.stack([ce(z[m][row : row + 1], y[row : row + 1]) for m in range(M)]).detach()
        hidden = [max(0.0, float(w @ own + b)) for w, b in zip(*both(first), strict=True)]
        t.append(
            [
                float(torch.tanh(w @ torch.tensor(hidden) + b))
                for w, b in zip(*both(second), strict=True)
            ]
        )
    total = 0.0
    for m in range(M):
        for row in range(len(y)):
            mean = sum(t[row]) / M if over_exits else sum(map(sum, t)) / (M * len(y))
            loss = ce(z[m][row : row + 1], y[row : row + 1])
            total = total + (1 + epsilon * (t[row][m] - mean)) * loss / len(y)
    return total


def both(linear):
    return linear.weight.detach(), linear.bias.detach()


def through(model, x):
    """The trunk's feature at each exit, stage by stage."""
    found = []
    for stage in range(M):
        x = model.backbone.stage_module(stage)(x)
        found.append(x)
    return found


def certainty(model, x, z, y):
    """BERxiT's J: how far what an exit thinks of itself is from what it should, squared."""
    total = 0.0
    for m, feature in enumerate(through(model, x)):
        head = model.heads[m]
        pooled = torch.tanh(feature @ head.base.pooler.weight.T + head.base.pooler.bias)
        for row in range(len(y)):
            u = 1 / (1 + torch.exp(-(head.gate.weight[0] @ pooled[row] + head.gate.bias[0])))
            if z[m].shape[1] == 1:
                wanted = 1 - abs(torch.tanh(z[m][row, 0] - y[row])).detach()
            else:
                wanted = 1.0 if int(z[m][row].argmax()) == int(y[row]) else 0.0
            total = total + (u - wanted) ** 2 / (M * len(y))
    return total


def by_name(loss, model):
    """The gradient of a loss by each parameter; zeros where it doesn't reach."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, named.values(), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(named.items(), found, strict=True)
    }


def without_pulls(anchor, at_odds=True, options=()):
    """RomeBERT: what the other gradient has against the anchor's is taken out of it.

    Args:
        at_odds: whether there must be something, so that no case is tested unseen.
    """

    def gradients(model, x, z, y):
        g, e = by_name(last(z, y), model), by_name(romebert_early(z, y, *options), model)
        if anchor == "early":
            g, e = e, g
        # Stages 0..M−2 are those that an early exit uses too; of these, the matrices.
        common = [f"backbone.stages.{stage}.0.weight" for stage in range(M - 1)]
        flat_g = torch.cat([g[name].flatten() for name in common])
        flat_e = torch.cat([e[name].flatten() for name in common])
        against = float(flat_e @ flat_g) / float(flat_g @ flat_g)
        assert (against < 0) == at_odds
        return {
            name: g[name] + e[name] - (min(against, 0) * g[name] if name in common else 0)
            for name in g
        }

    return gradients


def balanced(model, x, z, y):
    """ElasticBERT: a stage has the mean of what the exits at or above it ask for."""
    each = [by_name(ce(z[m], y), model) for m in range(M)]
    found = {name: sum(one[name] for one in each) for name in each[0]}
    for stage in range(M):
        for leaf in ("weight", "bias"):
            name = f"backbone.stages.{stage}.0.{leaf}"
            found[name] = sum(each[m][name] for m in range(stage, M)) / (M - stage)
    return found


def everything(name):
    return True


def the_network(name):
    return name.startswith(("backbone.", f"heads.{M - 1}."))


def early_heads(name):
    return not the_network(name)


def cascade(name):
    return early_heads(name) and "vote" not in name


def votes(name):
    return "vote" in name


@dataclass(frozen=True)
class Step:
    """One step of plain SGD, written out: the loss, and where it isn't the loss's, the gradient."""

    loss: Callable
    trains: Callable = everything
    gradients: Callable | None = None
    extra: Callable | None = None
    rate: float = 1.0


def eq_5_step(weights, teachers, tau=1.0):
    return ((Step(lambda z, y: eq_5(z, y, weights(), teachers, tau)),),)


WRITTEN_OUT = {
    "leebert": eq_5_step(uniform, everyone_else),
    "leebert-lle": eq_5_step(uniform, later),
    "leebert-rand": eq_5_step(drawn, everyone_else),
    "leebert-uniform": eq_5_step(uniform, everyone_else),
    "leebert-slo": eq_5_step(uniform, everyone_else),
    "leebert-blo": eq_5_step(uniform, everyone_else),
    "leebert-clo-v1": eq_5_step(uniform, everyone_else),
    "leebert-hyper": eq_5_step(uniform, everyone_else),
    "fastbert-clo-v2": eq_5_step(uniform, the_last),
    "joint": ((Step(joint),),),
    "branchynet": ((Step(joint),),),
    "msdnet": ((Step(joint),),),
    "right-tool": ((Step(joint),),),
    "pabee": ((Step(pabee),),),
    "pcee": ((Step(pabee),),),
    "shallow-deep": ((Step(shallow_deep),),),
    "dbt": ((Step(dbt),),),
    "berxit": ((Step(last, extra=certainty), Step(joint, extra=certainty)),),
    "elasticbert": ((Step(joint, gradients=balanced),),),
    "l2w-den": ((Step(weighed_rows),),),
    "romebert": (
        (Step(lambda z, y: last(z, y) + romebert_early(z, y), gradients=without_pulls("last")),),
    ),
    "deebert": ((Step(last, the_network),), (Step(early, early_heads),)),
    "shallow-deep-heads": ((Step(last, the_network),), (Step(early, early_heads),)),
    "fastbert": ((Step(last, the_network),), (Step(students, early_heads, rate=10.0),)),
    "ztw": ((Step(last, the_network),), (Step(early, cascade),), (Step(early, votes),)),
}
"""The steps of each phase of each recipe."""

WEIGHT_OF_CODE = (0.5, 2.0, 1 / CLASSES)
WITH_OPTIONS = {
    "leebert at τ = 4": (recipes.leebert(4.0), eq_5_step(uniform, everyone_else, 4.0)),
    "fastbert-clo-v2 at τ = 3": (
        recipes.fastbert_clo_v2(3.0),
        eq_5_step(uniform, the_last, 3.0),
    ),
    "dbt at τ = 4": (recipes.dbt(4.0), ((Step(lambda z, y: dbt(z, y, 4.0)),),)),
    "dbt of the teacher alone": (
        recipes.dbt(1.0, mix=1.0),
        ((Step(lambda z, y: 10 / M * sum(kd(z[m], z[M - 1], 1.0) for m in range(M - 1))),),),
    ),
    "berxit as its code has it": (
        recipes.berxit(variant="code"),
        ((Step(last, extra=certainty), Step(early, extra=certainty)),),
    ),
    "romebert with the weight of its code": (
        recipes.romebert(mix=0.5, temperature=2.0, kd_scale=1 / CLASSES),
        (
            (
                Step(
                    lambda z, y: last(z, y) + romebert_early(z, y, *WEIGHT_OF_CODE),
                    gradients=without_pulls("last", False, WEIGHT_OF_CODE),
                ),
            ),
        ),
    ),
    "shallow-deep on a trained network": (
        recipes.shallow_deep_heads(pretrained=True),
        ((Step(early, early_heads),),),
    ),
    "l2w-den on images": (
        recipes.l2w_den(epsilon=0.8, over="exits"),
        ((Step(lambda z, y: weighed_rows(z, y, 0.8, over_exits=True)),),),
    ),
}
CASES = {name: (mx.recipe(name), phases) for name, phases in WRITTEN_OUT.items()} | WITH_OPTIONS


class Scores(Table):
    """The same rows with a number to tell."""

    def __init__(self, rows):
        super().__init__(rows)
        self.labels = self.x[:, 0] - 0.5 * self.x[:, 1]


def network(recipe, classes=CLASSES):
    """A chain of M stages with the recipe's head, nothing random in it."""
    # Vectors are not read by attention: any head of its own will do for who learns what.
    head = "linear" if recipe.head == "attention" else recipe.head
    model = mx.MultiExitModel(chain(M).backbone, classes, head=head)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def assert_steps_are(model, recipe, index, steps, train):
    """Train a phase on one batch for a step or more of SGD; each must be the one written out."""
    phase = recipe.phases[index]
    still, rate = copy.deepcopy(model), 0.3
    plain = config(max_steps=len(steps), batch_size=ROWS, momentum=0.0, lr=rate)
    history = fit(model, replace(recipe, phases=(phase,), finish=None), plain, train)
    if phase.before_step is not None:
        phase.before_step(still, 0.0)
    for epoch, step in enumerate(steps):
        rows, _ = split_epoch(ROWS, 0, epoch, phase.learner.splits)
        x, y = train.x[rows], train.labels[rows]
        z = list(still(x))
        loss = step.loss(z, y)
        if step.extra is not None:
            loss = loss + step.extra(still, x, z, y)
        gradients = step.gradients(still, x, z, y) if step.gradients else by_name(loss, still)
        with torch.no_grad():
            for name, p in still.named_parameters():
                if step.trains(name):
                    p -= rate * step.rate * gradients[name]
        assert history.steps[epoch]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    for (name, after), wanted in zip(model.named_parameters(), still.parameters(), strict=True):
        torch.testing.assert_close(after, wanted, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: n + m)


def test_all_recipes_are_written_out():
    phases = {name: len(mx.recipe(name).phases) for name in recipes.RECIPES}
    assert {name: len(written) for name, written in WRITTEN_OUT.items()} == phases


@pytest.mark.parametrize(
    ("name", "index"),
    [(name, i) for name, (_, phases) in CASES.items() for i in range(len(phases))],
)
def test_each_phase_s_loss_and_its_step_are_the_papers(name, index):
    recipe, phases = CASES[name]
    model = network(recipe)
    with torch.no_grad():  # no longer as it was drawn: what is kept as trained must have learnt
        for p in model.heads[-1].parameters():
            p.mul_(1.5)
    assert_steps_are(model, recipe, index, phases[index], Table(ROWS))


@pytest.mark.parametrize("at_odds", [True, False])
@pytest.mark.parametrize("anchor", ["last", "early"])
def test_romebert_takes_a_pull_out_where_there_is_one(anchor, at_odds):
    recipe = recipes.romebert(anchor=anchor)
    model = network(recipe)
    if not at_odds:  # heads by which all exits pull one way
        with torch.no_grad():
            for head in model.heads[:-1]:
                head.load_state_dict(model.heads[-1].state_dict())
                head.linear.weight.neg_()
    ((step,),) = WRITTEN_OUT["romebert"]
    step = replace(step, gradients=without_pulls(anchor, at_odds))
    assert_steps_are(model, recipe, 0, (step,), Table(ROWS))


def test_berxit_learns_regression_and_how_far_off_it_is():
    recipe = mx.recipe("berxit")

    def squares(z, y):
        return sum(((z[m][:, 0] - y) ** 2).mean() for m in range(M))

    def last_square(z, y):
        return ((z[M - 1][:, 0] - y) ** 2).mean()

    steps = (Step(last_square, extra=certainty), Step(squares, extra=certainty))
    assert_steps_are(network(recipe, 1), recipe, 0, steps, Scores(ROWS))


def test_shallow_deep_grows_by_the_epoch():
    model, train = chain(M), Table(ROWS)
    at_rest = config(epochs=5, batch_size=ROWS, lr=1e-12)
    history = fit(model, "shallow-deep", at_rest, train)
    z = list(model(train.x))
    wanted = [shallow_deep(z, train.labels, epoch / 5).item() for epoch in range(1, 6)]
    assert [row["loss"] for row in history.steps] == pytest.approx(wanted, rel=1e-5)
    # By hand in the last epoch, where all CE are log 2: 1 + 1/4 + 2/4 + 3/4 of them.
    by_hand = float(shallow_deep(list(torch.zeros(M, 1, 2)), torch.tensor([0])))
    assert by_hand == pytest.approx(2.5 * 0.6931472)


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


def text_model(head):
    torch.manual_seed(1)
    sizes = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
    }
    return mx.MultiExitModel(mx.wrap(BertModel(BertConfig(**sizes))), 3, head=head)


def image_model(head):
    """Poolers and attention are for text; vectors are shared or mixed at one width alone."""
    torch.manual_seed(1)
    backbone = mx.cifar_resnet(20, in_channels=1, size=8)
    head = head and head.replace("own-pooler", "linear").replace("attention", "linear")
    of_one_width = head is not None and head.endswith(("+mix", "+lte"))
    return mx.MultiExitModel(backbone, 3, [0, 1, 2] if of_one_width else [0, 4, 8], head)


def image_rows():
    return images(24)


KINDS = {"text": (text_model, Text), "images": (image_model, image_rows)}
LEARN = {
    "leebert",
    "leebert-lle",
    "leebert-slo",
    "leebert-blo",
    "leebert-clo-v1",
    "leebert-hyper",
    "fastbert-clo-v2",
    "l2w-den",
}
EVERY_STEP = LEARN - {"leebert-hyper", "l2w-den"}
IDLE = {"right-tool": {"heads.0.mix"}}  # the share of one vector alone is 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_trains_saves_loads_and_predicts(name, kind, tmp_path):
    make, rows = KINDS[kind]
    recipe = mx.recipe(name)
    model, train = make(recipe.head), rows()
    dev = None if recipe.finish is None else train if kind == "text" else train.for_evaluation()
    before = tensors(model)
    run = config(max_steps=5, batch_size=4, lr=0.05, output=tmp_path, clip=1.0)
    history = fit(model, recipe, run, train, dev)

    assert [row["phase"] for row in history.steps] == [
        phase for phase in range(len(recipe.phases)) for _ in range(5)
    ]
    assert all(torch.tensor(row["loss"]).isfinite() for row in history.steps)
    still = {k for k, v in model.named_parameters() if torch.equal(v, before[k])}
    behind = range(model.exits[-1] + 1, model.backbone.num_stages)
    never_run = ("embeddings", *(f"stages.{stage}." for stage in behind))
    idle = {k for k in still if not any(part in k for part in never_run)}
    assert idle == IDLE.get(name, set()), f"not trained: {idle}"

    (learner,) = {phase.learner for phase in recipe.phases}
    teaches_MM = topology.resolve(recipe.phases[0].topology, model.num_exits)
    first = learner.weights(teaches_MM, seed=0).state_dict()
    omega = saved_state(tmp_path)["stepper"]["omega"]["weights"]
    assert (differences(first, omega) != []) == learner.learns == (name in LEARN)
    weights = [W_MM for _, W_MM in history.weights]
    assert len(weights) == (5 if name in LEARN - {"l2w-den"} else 0)
    if name in EVERY_STEP:
        assert all(a != b for a, b in pairwise(weights))
        assert all(w != 1 for row in weights[:1] for w in row if w is not None)

    again = mx.MultiExitModel.from_pretrained(tmp_path / "model")
    assert_same(tensors(again), tensors(model))
    assert again.policy == model.policy
    if name == "msdnet":
        assert len(again.policy.threshold) == model.num_exits - 1, "a threshold for each early exit"
    else:
        assert again.policy == recipe.policy
    outputs = mx.collect(model, train if kind == "text" else train.for_evaluation())
    batch = train.collate([train[row] for row in range(6)]) if kind == "text" else None
    inputs = (
        {k: v for k, v in batch.items() if k != "labels"}
        if batch
        else {"x": train.for_evaluation().__getitems__(range(6))[0]}
    )
    prediction = again.predict(again.policy, **inputs)
    certainty_MB = outputs.certainty_MB
    assert (certainty_MB is not None) == (name == "berxit")
    exit_B, answer_BC = policies.answers(
        again.policy,
        outputs.logits_MBC[:, :6],
        None if certainty_MB is None else certainty_MB[:, :6],
    )
    assert torch.equal(prediction.exit_B, exit_B)
    torch.testing.assert_close(prediction.logits_BC, answer_BC, atol=1e-4, rtol=1e-4)


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
    assert mx.recipe(name) == made or name in ("dbt", "romebert")  # a closure of its own


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match=r"no recipe 'leeberd'.*leebert-clo-v1"):
        mx.recipe("leeberd")
    with pytest.raises(ValueError, match=r"pabee.*temperature"):
        mx.recipe("pabee", temperature=2.0)
    with pytest.raises(ValueError, match="mix"):
        mx.recipe("dbt", mix=1.5)
    with pytest.raises(ValueError, match="cycle"):
        mx.recipe("leebert", cycle=0)
    with pytest.raises(ValueError, match="'all', 'last', 'heads' or"):
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
        A_MM = coefficients.summed(teaches_MM, 0.0, ()) * 2
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
