"""Every recipe's loss and step, written out as its paper has it."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from helpers import CLASSES, OF_CLASSES, Scores, Table, chain, config, fit, stage_features
from torch import nn
from torch.nn import functional as F

import multiexit as mx
from multiexit import recipes
from multiexit.data.order import split_epoch
from multiexit.losses import topology

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


def cosee(z, y, alpha=0.1, margin=0.3):
    """As it begins, with equal weights at all exits; and how doubt tells right rows from wrong."""
    hinges = []
    for logits in z[:-1]:
        p = logits.softmax(-1)
        doubts = {True: [], False: []}
        for row in range(len(y)):
            doubt = -(p[row] * p[row].log()).sum() / math.log(CLASSES)
            doubts[int(logits[row].argmax()) == int(y[row])].append(doubt)
        if doubts[True] and doubts[False]:
            right, wrong = (sum(some) / len(some) for some in (doubts[True], doubts[False]))
            hinges.append(max(right - wrong + margin, torch.zeros(())))
    assert hinges, "some exit must be right on some rows and wrong on others"
    return joint(z, y) / M + alpha * sum(hinges) / len(hinges)


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


def certainty(model, x, z, y):
    """BERxiT's J: how far what an exit thinks of itself is from what it should, squared."""
    total = 0.0
    for m, feature in enumerate(stage_features(model, x)):
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


def leaving(model, x, z, y, alpha=0.03):
    """ConsistentEE: what each row costs at each exit, by the chance that it leaves there."""
    total, features = 0.0, stage_features(model, x)
    for row in range(len(y)):
        right = [int(z[m][row].argmax()) == int(y[row]) for m in range(M)]
        memorised = next((m for m in range(1, M + 1) if all(right[m - 1 :])), M)
        stays = 1.0
        for m in range(M):
            opens = 1.0
            if m < M - 1:
                first, _, second = model.heads[m].gate
                hidden = F.gelu(first.weight @ features[m][row] + first.bias)
                opens = 1 / (1 + torch.exp(-(second.weight[0] @ hidden + second.bias[0])))
            loss = ce(z[m][row : row + 1], y[row : row + 1])
            price = alpha * (m + 1) * (1 - memorised / M)
            total = total + stays * opens * (loss + price) / len(y)
            stays = stays * (1 - opens)
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


def gates(name):
    return "gate" in name


def nothing(z, y):
    return 0.0


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
    "leebert-group-dro": eq_5_step(uniform, everyone_else),
    "fastbert-clo-v2": eq_5_step(uniform, the_last),
    "joint": ((Step(joint),),),
    "branchynet": ((Step(joint),),),
    "msdnet": ((Step(joint),),),
    "right-tool": ((Step(joint),),),
    "pabee": ((Step(pabee),),),
    "pcee": ((Step(pabee),),),
    "beem": ((Step(pabee),),),
    "cosee": ((Step(cosee),),),
    "shallow-deep": ((Step(shallow_deep),),),
    "dbt": ((Step(dbt),),),
    "berxit": ((Step(last, extra=certainty), Step(joint, extra=certainty)),),
    "elasticbert": ((Step(joint, gradients=balanced),),),
    "l2w-den": ((Step(weighed_rows),),),
    "romebert": (
        (Step(lambda z, y: last(z, y) + romebert_early(z, y), gradients=without_pulls("last")),),
    ),
    "consistentee": (
        (Step(pabee),),
        (Step(nothing, gates, extra=leaving, rate=15.0),),
        (Step(nothing, extra=leaving),),
    ),
    "mixed": ((Step(last, the_network),), (Step(joint),)),
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
    phases = {name: len(mx.recipe(name).phases) for name in OF_CLASSES}
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
