"""Checks for parts of one's own: policies, backbones, heads, learners, topologies.

Each raises AssertionError saying what is wrong, and returns nothing where all is well. They serve
in a test: `def test_margin(): multiexit.testing.check_policy(Margin(0.3))`.

Letters: M exits, B batch rows, C classes, T tokens.
"""

import copy
import json
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from multiexit import policies, problems
from multiexit.backbones import Backbone, adapters, rebuild, select
from multiexit.losses import topology
from multiexit.losses.criterion import Criterion
from multiexit.losses.topology import Topology
from multiexit.losses.weights.checks import check_learner as check_agreement
from multiexit.losses.weights.learners import Learner, Plan
from multiexit.losses.weights.state import Omega
from multiexit.model import heads
from multiexit.policies import ExitPolicy


def check_policy(
    policy: ExitPolicy,
    num_classes: int = 3,
    exits: int = 6,
    rows: int = 40,
    problem: str | None = None,
) -> None:
    """A row's exit is the same in any batch, the last exit has a say, and saving loses nothing.

    Random logits [M, B, C], from unsure to sure, with ties and with answers that last, and random
    certainties [M, B] are decided row by row, as one batch, shuffled, and in a batch that stopped
    rows leave.

    Args:
        policy: what is checked.
        num_classes: C; 1 for policies of regression.
        exits, rows: M and B.
        problem: what the logits say of a row, a key of `multiexit.problems.PROBLEMS`: rows that are
            several decisions stop when all of theirs would. None is classification, or with one
            output regression.

    Raises:
        AssertionError: no frozen dataclass, the row that another one sways, an `answer` that is
            deaf to the last exit's logits, or what comes back from JSON.

    Example:
        >>> import multiexit as mx
        >>> from multiexit import testing
        >>> testing.check_policy(mx.Patience(2))
    """
    _require(
        "__dataclass_params__" in vars(type(policy)),
        f"{type(policy).__name__} must be a frozen dataclass, so that its fields are saved and "
        "compared: write @dataclass(frozen=True) over the class",
    )
    problem = problems.resolve(problem, num_classes)
    simulate, run = (partial(f, problem=problem) for f in (policies.simulate, _run))
    generator = torch.Generator().manual_seed(0)
    tokens = (4,) if problem == "token-classification" else ()
    shape = (exits, rows, *tokens, num_classes)
    scale_B = torch.logspace(-2, 1.5, rows).view(-1, *(1 for _ in shape[2:]))
    logits_MBC = scale_B * torch.randn(shape, generator=generator)
    logits_MBC[:, ::5] = logits_MBC[:1, ::5]  # the same answer at every exit
    logits_MBC[1:, 1::5] = logits_MBC[1:2, 1::5]  # at all but the first
    logits_MBC[:, 2::7] = 0  # ties
    logits_MBC = problems.outputs_of(logits_MBC, problem)
    certainty_MB = torch.rand(exits, rows, generator=generator)
    alone_B = torch.cat(
        [run(policy, logits_MBC[:, [row]], certainty_MB[:, [row]]) for row in range(rows)]
    )
    order_B = torch.randperm(rows, generator=generator)
    shuffled_B = torch.empty_like(alone_B)
    shuffled_B[order_B] = simulate(policy, logits_MBC[:, order_B], certainty_MB[:, order_B])
    ways = {
        "in a batch": simulate(policy, logits_MBC, certainty_MB),
        "in a shuffled batch": shuffled_B,
        "in a batch that stopped rows leave": run(policy, logits_MBC, certainty_MB),
    }
    for how, exit_B in ways.items():
        for row in (exit_B != alone_B).nonzero().flatten().tolist():
            where = f"at exit {int(exit_B[row])} {how}, at {int(alone_B[row])} alone"
            raise AssertionError(f"{policy}: row {row} leaves {where}; no row may sway another")
    last_B = alone_B == exits - 1
    _check_last_answer(policy, logits_MBC[:, last_B], certainty_MB[:, last_B], problem)
    policies.check_saved(policy)
    loaded = policies.from_json(json.loads(json.dumps(policies.to_json(policy))), [type(policy)])
    _require(loaded == policy, f"{policy} comes back from JSON as {loaded}")


def check_backbone(backbone: Backbone, inputs: dict[str, Tensor] | None = None) -> None:
    """Stages chain up to the features, carries are batch-first, rows don't touch each other.

    Args:
        backbone: what is checked, on a copy in evaluation mode.
        inputs: at least 3 rows by name; by default its own example with random numbers where the
            example has fractions. Text deserves real rows, with padding.

    Raises:
        AssertionError: with the stage and what is wrong there.

    Example:
        >>> from torch import nn
        >>> import multiexit as mx
        >>> from multiexit import testing
        >>> testing.check_backbone(mx.wrap(nn.Sequential(nn.Linear(4, 8), nn.ReLU())))
    """
    backbone = copy.deepcopy(backbone).eval()
    if inputs is None:
        example = backbone.example_inputs(3)
        inputs = {k: torch.rand_like(v) if v.is_floating_point() else v for k, v in example.items()}
    rows = {len(value) for value in inputs.values()}
    _require(len(rows) == 1 and min(rows) >= 3, f"inputs need at least 3 rows each, have {rows}")
    example_rows = {len(value) for value in backbone.example_inputs().values()}
    _require(example_rows == {1}, f"example_inputs() gives {example_rows} rows, not one")
    with torch.no_grad():
        _check_stages(backbone, inputs, min(rows))
    spec = adapters.described(backbone)
    if spec is not None:
        remade = rebuild(json.loads(json.dumps(spec)))
        mine, theirs = ({k: v.shape for k, v in b.state_dict().items()} for b in (backbone, remade))
        wrong = sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
        _require(not wrong, f"what its spec rebuilds has other tensors: {wrong[:5]}; use spec=None")


def check_head(factory: heads.Factory, shape: heads.Shape, num_classes: int = 3) -> None:
    """A head gives logits [B, C], row by row and blind to padding, and every parameter learns.

    One that reads what earlier heads left stands behind another one of its kind.

    Args:
        factory: `(feature shape without the batch, C) -> module`.
        shape: `(D,)`, `(None, H)` or `(channels, height, width)`.
        num_classes: C.

    Raises:
        AssertionError: with what is wrong.

    Example:
        >>> from torch import nn
        >>> from multiexit import testing
        >>> testing.check_head(lambda shape, C: nn.Linear(shape[0], C), (8,))
        >>> testing.check_head(lambda shape, C: nn.Linear(shape[0], 7), (8,))
        Traceback (most recent call last):
        AssertionError: logits must be (4, 3), are (4, 7)
    """
    head = factory(shape, num_classes).eval()
    feature = torch.randn(4, *(7 if size is None else size for size in shape))
    chained = isinstance(head, heads.ChainedHead)
    before = factory(shape, num_classes).eval() if chained else None
    reads_valid = isinstance(head, heads.Head | heads.ChainedHead) and len(shape) == 2
    valid_BT = torch.arange(feature.shape[1]) < torch.tensor([[1], [3], [5], [7]])

    def run(x: Tensor, valid_BT: Tensor) -> Tensor:
        valid = valid_BT if reads_valid else None
        if before is not None:
            _, memory = heads.ask(before, x, valid, {})
            return heads.ask(head, x, valid, memory)[0]
        return head(x, valid) if reads_valid else head(x)

    logits_BC = run(feature, valid_BT)
    sizes = tuple(logits_BC.shape)
    _require(sizes == (4, num_classes), f"logits must be {(4, num_classes)}, are {sizes}")
    near = torch.allclose(run(feature[3:], valid_BT[3:]), logits_BC[3:], atol=1e-5)
    _require(near, "a row's logits depend on other rows")
    if reads_valid:
        noisy = torch.where(valid_BT.unsqueeze(-1), feature, 100.0)
        near = torch.allclose(run(noisy, valid_BT), logits_BC, atol=1e-5)
        _require(near, "logits depend on what stands in padding")
    logits_BC.square().sum().backward()
    idle = [name for name, p in head.named_parameters() if p.requires_grad and p.grad is None]
    _require(not idle, f"parameters {idle} take no part: training on many devices can't have that")


def check_learner(learner: Learner, exits: int = 4) -> None:
    """Its weights fit the topology, its plans are numbers, Ω moves by them and can be resumed.

    Args:
        learner: what is checked.
        exits: M, to try it with.

    Raises:
        AssertionError: with the step and what is wrong there.

    Example:
        >>> import multiexit as mx
        >>> from multiexit import testing
        >>> testing.check_learner(mx.weights.CLO2(cycle=3))
    """
    try:
        check_agreement(learner, topology.lae(exits))
    except ValueError as error:
        raise AssertionError(str(error)) from error
    again_MM = learner.weights(topology.lae(exits), 0)()
    weights_MM = learner.weights(topology.lae(exits), 0)()
    _require(torch.equal(weights_MM, again_MM), "the same seed gives other weights")
    omega, resumed = (Omega(learner, topology.lae(exits), 0.01, 0.5, seed) for seed in (0, 1))
    rows = [(torch.rand(exits, 8), torch.randn(exits, 8))] if learner.weighs_rows else []
    for step in range(12):
        before, plan = copy.deepcopy(omega.weights.state_dict()), omega.plan(step)
        if any(plan):
            terms = {name: torch.rand(exits, exits) for name in Plan._fields}
            omega.update(plan, torch.ones(exits, exits), terms, rows)
        W_MM = omega.value()
        _require(bool(W_MM.isfinite().all()), f"weights aren't finite after step {step}")
        after = omega.weights.state_dict()
        moved = any(not torch.equal(before[name], after[name]) for name in after)
        _require(moved == (any(plan) and learner.learns), f"step {step}, {plan}: Ω moved: {moved}")
    if learner.looks_back:
        logits_MBC = torch.randn(exits, 8, 3, requires_grad=True)
        for criterion, labels in (
            (Criterion(), torch.arange(8) % 3),
            (Criterion("multi-label"), torch.ones(8, 3)),
        ):
            outer = learner.outer(logits_MBC, labels, criterion)
            _require(
                outer.ndim == 0 and outer.requires_grad and bool(outer.isfinite()),
                f"outer(logits_MBC, labels, {criterion}) must be a scalar with a gradient, is "
                f"{outer!r}",
            )
    resumed.load_state_dict(omega.state_dict())
    _require(torch.equal(resumed.value(), omega.value()), "Ω isn't the same after being saved")


def check_topology(made: Topology) -> None:
    """`made(M)` is a bool matrix [M, M] in which no exit teaches itself, the same at each call.

    Args:
        made: what is checked.

    Raises:
        AssertionError: with M and what is wrong there.

    Example:
        >>> import torch, multiexit as mx
        >>> from multiexit import testing
        >>> testing.check_topology(mx.topology.lle)
        >>> testing.check_topology(lambda M: torch.eye(M).bool())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        AssertionError: at M = 1: an exit can't teach itself; ...
    """
    for M in (1, 2, 3, 7, 12, 27):
        try:
            same = torch.equal(topology.resolve(made, M), made(M))
        except ValueError as error:
            raise AssertionError(f"at M = {M}: {error}") from error
        _require(same, f"two calls at M = {M} differ")


def _run(policy: ExitPolicy, logits_MBC: Tensor, certainty_MB: Tensor, problem: str) -> Tensor:
    """Exits [B] by the plain loop: one exit after another, stopped rows leave."""
    policy = policies.for_problem(policy, problem)
    M, B = logits_MBC.shape[:2]
    exit_B, rows_B = torch.full((B,), M - 1), torch.arange(B)
    state = policy.init(logits_MBC[0])
    _require_rows(state, B, f"{policy}.init's state")
    for m in range(M - 1):
        if len(rows_B) == 0:
            break
        exit_logits_BC, certain_B = logits_MBC[m, rows_B], certainty_MB[m, rows_B]
        state, stop_B = policies.step(policy, state, exit_logits_BC, certain_B)
        _require_rows(state, len(rows_B), f"{policy}.step's state")
        exit_B[rows_B[stop_B]] = m
        state, rows_B = select(state, ~stop_B), rows_B[~stop_B]
    return exit_B


def _check_last_answer(
    policy: ExitPolicy, logits_MBC: Tensor, certainty_MB: Tensor, problem: str
) -> None:
    """Of rows that all reach the last exit, the answer depends on what that exit says."""
    if logits_MBC.shape[1] == 0:
        return
    whole = policies.for_problem(policy, problem)
    state = whole.init(logits_MBC[0])
    for logits_BC, certainty_B in zip(logits_MBC[:-1], certainty_MB[:-1], strict=True):
        state, _ = policies.step(whole, state, logits_BC, certainty_B)
    loud_BC = 100 * torch.randn(logits_MBC[0].shape, generator=torch.Generator().manual_seed(1))
    one_BC, other_BC = (problems.outputs_of(sign * loud_BC, problem) for sign in (1, -1))
    _require(
        not torch.equal(whole.answer(state, one_BC), whole.answer(state, other_BC)),
        f"{policy}.answer at the last exit doesn't depend on that exit's logits: no step is run "
        "there, so answer itself must take in logits_BC",
    )


def _check_stages(backbone: Backbone, inputs: dict[str, Tensor], B: int) -> None:
    features, shapes = backbone.features(**inputs), backbone.feature_shapes
    _require(len(features) == len(shapes) > 0, f"{len(features)} features, {len(shapes)} stages")
    carry = backbone.start(**inputs)
    _require_rows(carry, B, "start()'s carry")
    keep = torch.arange(B) % 2 == 0
    few = select(carry, keep)
    for index, (whole, shape) in enumerate(zip(features, shapes, strict=True)):
        where, sizes = f"stage {index}", tuple(whole.shape[1:])
        _require(isinstance(backbone.stage_module(index), nn.Module), f"{where} has no module")
        carry, feature = backbone.stage(carry, index)
        _require_rows(carry, B, f"{where}'s carry")
        _require(torch.equal(feature, whole), f"{where}: features() is not the chain of stages")
        like = tuple(n if n is None else size for n, size in zip(shape, sizes, strict=False))
        fits = len(sizes) == len(shape) and like == tuple(shape)
        _require(fits, f"{where}: feature_shapes says {shape}, the feature has {sizes}")
        few, feature = backbone.stage(few, index)
        near = torch.allclose(feature, whole[keep], atol=1e-4, rtol=1e-4)
        _require(near, f"{where}: rows change when others leave the batch")
        if index == len(shapes) // 2:  # and once more from the middle
            few, keep = select(carry, ~keep), ~keep


def _require_rows(tree: Any, rows: int, what: str) -> None:
    for key, value in tree.items():
        if isinstance(value, dict):
            _require_rows(value, rows, f"{what}[{key!r}]")
        elif isinstance(value, Tensor):
            sizes = tuple(value.shape)
            _require(sizes[:1] == (rows,), f"{what}[{key!r}] must have {rows} rows, is {sizes}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
