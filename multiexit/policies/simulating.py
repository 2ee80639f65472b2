"""Policies on stored logits, and whether they fit a model.

Letters: M exits, B batch rows, T tokens, C outputs. Exits are counted from 0.
"""

import warnings
from dataclasses import fields

import torch
from torch import Tensor

from multiexit import problems
from multiexit.arguments import check_fields
from multiexit.policies.base import ExitPolicy, answer, step
from multiexit.policies.decisions import for_problem
from multiexit.policies.numbers import Known, Number
from multiexit.runtime import wide
from multiexit_runner.user_line import user_level


def simulate(
    policy: ExitPolicy,
    logits_MBC: Tensor,
    certainty_MB: Tensor | None = None,
    problem: str | None = None,
    asked_BT: Tensor | None = None,
) -> Tensor:
    """Find where each row would leave, from stored logits of all exits.

    Gives what `MultiExitModel.predict` gives, without running the model again.

    Args:
        policy: any `ExitPolicy`.
        logits_MBC: all exits' logits [M, B, C], or of tokens [M, B, T, C].
        certainty_MB: how sure each exit is, in 0..1, of models that learn to exit.
        problem: the model's (`MultiExitModel.problem`); None is classification, or with one output
            regression.
        asked_BT: of tokens, which are asked for; None is all. A row where none is leaves at once.

    Returns:
        exit_B: index of the exit, 0..M−1, int64 [B].

    Raises:
        ValueError: logits of another shape or with NaN, a policy that doesn't fit them, or one
            whose step is malformed.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[1.0, 0]], [[2.0, 0]], [[9.0, 0]], [[9.0, 0]]])
        >>> mx.simulate(mx.Patience(2), logits_MBC)
        tensor([2])
    """
    exit_B = answers(policy, logits_MBC, certainty_MB, problem, asked_BT)[0]
    if (nan_MB := logits_MBC.isnan().flatten(2).any(2)).any():
        rows, exits = int(nan_MB.any(0).sum()), nan_MB.any(1).nonzero().flatten().tolist()
        raise ValueError(
            f"logits are NaN in {rows} of {len(exit_B)} rows, at the exits {exits}: where these "
            "rows would leave means nothing"
        )
    return exit_B


def answers(
    policy: ExitPolicy,
    logits_MBC: Tensor,
    certainty_MB: Tensor | None = None,
    problem: str | None = None,
    asked_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find where each row would leave, and what it answers there.

    Args:
        policy, logits_MBC, certainty_MB, problem, asked_BT: as for `simulate`.

    Returns:
        exit_B, int64 [B], and answer_BC [B, C], float32 (float64 of float64).

    Raises:
        ValueError: as for `simulate`, but for NaN.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[3.0, 0], [1, 0]], [[4, 0], [5, 0]]])
        >>> exit_B, answer_BC = mx.policies.answers(mx.MaxProb(0.9), logits_MBC)
        >>> exit_B.tolist(), answer_BC.tolist()
        ([0, 1], [[3.0, 0.0], [5.0, 0.0]])
    """
    tokens = problem == "token-classification"
    if logits_MBC.ndim != 3 + tokens or len(logits_MBC) == 0:
        wanted = "[M, B, T, C]" if tokens else "[M, B, C]"
        raise ValueError(f"logits are {wanted}, got {tuple(logits_MBC.shape)}")
    M, B, C = len(logits_MBC), logits_MBC.shape[1], logits_MBC.shape[-1]
    check(policy, M, C, problem)
    policy = for_problem(policy, problems.resolve(problem, C))
    logits_MBC = wide(logits_MBC)
    exit_B = torch.full((B,), M - 1, device=logits_MBC.device)
    active_B = torch.ones(B, dtype=torch.bool, device=logits_MBC.device)
    state = policy.init(logits_MBC[0])
    answer_BC = torch.empty_like(logits_MBC[0])
    for m in range(M - 1):
        certainty_B = None if certainty_MB is None else certainty_MB[m]
        state, stop_B = step(policy, state, logits_MBC[m], certainty_B, asked_BT)
        leaves_B = active_B & stop_B
        exit_B[leaves_B] = m
        answer_BC[leaves_B] = answer(policy, state, logits_MBC[m])[leaves_B]
        active_B &= ~stop_B
    answer_BC[active_B] = answer(policy, state, logits_MBC[-1])[active_B]
    return exit_B, answer_BC


def check(policy: ExitPolicy, num_exits: int, num_classes: int, problem: str | None = None) -> None:
    """Refuse a policy that doesn't fit a model, before the model is run.

    Args:
        policy: what is checked.
        num_exits: M.
        num_classes: C, how many outputs there are.
        problem: the model's; None is classification, or with one output regression.

    Raises:
        ValueError: no policy, or one of a class that is no frozen dataclass; an exit that isn't
            there, another count of thresholds than exits, or a policy of classes for regression or
            vectors, and the other way round.

    Warns:
        UserWarning: a threshold far off the scale of what it is compared with.
    """
    if not isinstance(policy, ExitPolicy):
        raise ValueError(f"a policy is wanted, such as Patience(4); got {type(policy).__name__}")
    check_fields(type(policy))
    classes = problems.classes_of_decision(problem, num_classes)
    _check_reads(policy, problems.resolve(problem, num_classes))
    known = Known(num_exits, classes)
    for f in fields(policy):
        if (rule := f.metadata.get(Number)) is not None:
            rule.check_fits(f"{type(policy).__name__}'s {f.name}", getattr(policy, f.name), known)
    policy.init(torch.zeros(1, classes))
    for name, (low, high) in scales(policy, known).items():
        value = getattr(policy, name)
        for number in value if isinstance(value, tuple) else (value,):
            if not low <= number <= high:
                warnings.warn(
                    f"{type(policy).__name__}'s {name} is {number}, and what it is compared with "
                    f"never is: it should be from {low} to {high}",
                    stacklevel=user_level(),
                )


def scales(policy: ExitPolicy, known: Known) -> dict[str, tuple[float, float]]:
    """Say of its numbers between which values they may tell rows apart, where that is known.

    Args:
        policy: whose numbers they are.
        known: about the model.

    Returns:
        By name, the lowest and the highest, with a little room where nobody or everybody leaves.

    Example:
        >>> import multiexit as mx
        >>> scales(mx.PatientConfident(0.2, patience=3), mx.policies.Known(12, 2))
        {'threshold': (-0.1, 1.1)}
    """
    rules = {f.name: f.metadata.get(Number) for f in fields(policy)}
    ranges = {name: rule.on_scale(known) for name, rule in rules.items() if rule is not None}
    return {name: pair for name, pair in ranges.items() if pair is not None}


def _check_reads(policy: ExitPolicy, problem: str) -> None:
    """Refuse a policy that can't go by such outputs: a softmax of a vector would mean nothing."""
    kind = "vectors" if problems.are_vectors(problem) else "decisions"
    if kind in policy.reads:
        return
    name = type(policy).__name__
    if kind == "vectors":
        raise ValueError(
            f"{name} goes by logits, and the outputs of an embedding are vectors: use "
            "Settled(threshold) or FixedExit; a policy of your own that goes by vectors says "
            'reads = ("vectors",)'
        )
    raise ValueError(
        f"{name} goes by the vectors of an embedding, and this model's problem is {problem!r}: use "
        "another policy, such as Patience(4)"
    )
