"""When to stop: exit policies, and how they run on stored logits.

A policy sees the exits one after another and says which rows stop. Its state is a dict of
batch-first tensors, so rows that stopped can be dropped from it like from everything else.

Letters: M exits, B batch rows, C classes. Exits are counted from 0. H is entropy in nats.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any, get_type_hints

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class ExitPolicy(ABC):
    """Decides, exit after exit, which rows stop. Subclass it as a frozen dataclass.

    Whoever runs the policy ends everyone at the last exit; the policy need not know which it is.
    A row's decision may depend on that row alone, so that it is the same in any batch.
    """

    @abstractmethod
    def init(self, logits_BC: Tensor) -> State:
        """The state before the first exit, made to fit the first exit's logits."""

    @abstractmethod
    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        """Look at one exit (the first included): the new state, and stop_B, bool [B]."""


@dataclass(frozen=True)
class _Stateless(ExitPolicy):
    """Looks at one exit's logits alone."""

    threshold: float

    def __post_init__(self) -> None:
        _check_number("threshold", self.threshold)

    def init(self, logits_BC: Tensor) -> State:
        return {}


@dataclass(frozen=True)
class Entropy(_Stateless):
    """Stop when H(p) < threshold, in nats (BranchyNet 2016; DeeBERT 2020)."""

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        return state, entropy(logits_BC) < self.threshold


@dataclass(frozen=True)
class NormalizedEntropy(_Stateless):
    """Stop unless H(p) / log C > threshold, in 0..1 (FastBERT 2020, eq. 7: its "speed")."""

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        return state, ~(normalized_entropy(logits_BC) > self.threshold)


@dataclass(frozen=True)
class MaxProb(_Stateless):
    """Stop when max p ≥ threshold (Shallow-Deep 2019; The Right Tool 2020)."""

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        _need_classes(logits_BC, "MaxProb")
        return state, logits_BC.softmax(-1).amax(-1) >= self.threshold


@dataclass(frozen=True)
class Margin(_Stateless):
    """Stop when the two largest probabilities differ by at least the threshold."""

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        _need_classes(logits_BC, "Margin")
        top = logits_BC.softmax(-1).topk(2).values
        return state, top[:, 0] - top[:, 1] >= self.threshold


@dataclass(frozen=True)
class Patience(ExitPolicy):
    """Stop when an answer has stayed the same `patience` times in a row (PABEE 2020).

    The counter rises when an exit agrees with the one before and falls to 0 when not. With
    patience p the exit of index p, the (p+1)-th, is the earliest.

    Args:
        patience: how many agreements, at least 1.
        tolerance: for regression (C = 1): agreement is |y_m − y_(m−1)| < tolerance.
    """

    patience: int
    tolerance: float | None = None

    def __post_init__(self) -> None:
        _check_patience(self.patience)
        if self.tolerance is not None:
            _check_number("tolerance", self.tolerance)

    def init(self, logits_BC: Tensor) -> State:
        if self.tolerance is None:
            _need_classes(logits_BC, "Patience without a tolerance")
        elif logits_BC.shape[1] != 1:
            raise ValueError(
                f"tolerance={self.tolerance} is for regression (one output); these logits have "
                f"{logits_BC.shape[1]} classes: leave it out"
            )
        answer_B = self._answer(logits_BC)
        never = -1 if self.tolerance is None else math.nan
        return {
            "answer": torch.full_like(answer_B, never),
            "count": torch.zeros_like(answer_B, dtype=torch.long),
        }

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        answer_B = self._answer(logits_BC)
        if self.tolerance is None:
            agrees_B = answer_B == state["answer"]
        else:
            agrees_B = (answer_B - state["answer"]).abs() < self.tolerance
        count_B = (state["count"] + 1) * agrees_B
        return {"answer": answer_B, "count": count_B}, count_B >= self.patience

    def _answer(self, logits_BC: Tensor) -> Tensor:
        return logits_BC.argmax(-1) if self.tolerance is None else logits_BC[:, 0]


@dataclass(frozen=True)
class PatientConfident(ExitPolicy):
    """Stop at `patience` confident exits in a row: H(p) / log C < threshold (PCEE 2022)."""

    threshold: float
    patience: int

    def __post_init__(self) -> None:
        _check_number("threshold", self.threshold)
        _check_patience(self.patience)

    def init(self, logits_BC: Tensor) -> State:
        return {"count": logits_BC.new_zeros(len(logits_BC), dtype=torch.long)}

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        confident_B = normalized_entropy(logits_BC) < self.threshold
        count_B = (state["count"] + 1) * confident_B
        return {"count": count_B}, count_B >= self.patience


@dataclass(frozen=True)
class FixedExit(ExitPolicy):
    """Everyone stops at the exit of this index, counted from 0 (a static, shorter network)."""

    exit: int

    def __post_init__(self) -> None:
        if isinstance(self.exit, bool) or not isinstance(self.exit, int) or self.exit < 0:
            raise ValueError(f"exit must be an index from 0, got {self.exit!r}")

    def init(self, logits_BC: Tensor) -> State:
        return {"index": logits_BC.new_zeros(len(logits_BC), dtype=torch.long)}

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        return {"index": state["index"] + 1}, state["index"] >= self.exit


POLICIES: dict[str, type[ExitPolicy]] = {
    "entropy": Entropy,
    "normalized-entropy": NormalizedEntropy,
    "max-prob": MaxProb,
    "margin": Margin,
    "patience": Patience,
    "patient-confident": PatientConfident,
    "fixed": FixedExit,
}


def entropy(logits_BC: Tensor) -> Tensor:
    """H(softmax(z)) = log Σ e^z − Σ z e^z / Σ e^z, in nats, [B]."""
    _need_classes(logits_BC, "entropy")
    log_p = logits_BC.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


def normalized_entropy(logits_BC: Tensor) -> Tensor:
    """H / log C, in 0..1, [B]."""
    return entropy(logits_BC) / math.log(logits_BC.shape[-1])


def step(policy: ExitPolicy, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
    """`policy.step`, with its answer checked.

    Raises:
        ValueError: no pair, or a stop that is no bool tensor [B].
    """
    answer = policy.step(state, logits_BC)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise ValueError(
            f"{type(policy).__name__}.step must return (state, stop), got {type(answer).__name__}"
        )
    state, stop_B = answer
    B = len(logits_BC)
    if not isinstance(stop_B, Tensor) or stop_B.dtype != torch.bool or stop_B.shape != (B,):
        got = type(stop_B).__name__
        if isinstance(stop_B, Tensor):
            got = f"{stop_B.dtype} {tuple(stop_B.shape)}"
        raise ValueError(
            f"{type(policy).__name__}.step must return (state, stop) with stop a torch.bool tensor "
            f"of shape ({B},); got {got}"
        )
    return state, stop_B


def simulate(policy: ExitPolicy, logits_MBC: Tensor) -> Tensor:
    """Where each row would leave, from stored logits of all exits.

    Gives what `MultiExitModel.predict` gives, without running the model again.

    Args:
        policy: any `ExitPolicy`.
        logits_MBC: all exits' logits [M, B, C].

    Returns:
        exit_B: index of the exit, 0..M−1, int64 [B].

    Raises:
        ValueError: logits of another shape, or a policy whose step is malformed.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[1.0, 0]], [[2.0, 0]], [[9.0, 0]], [[9.0, 0]]])
        >>> mx.simulate(mx.Patience(2), logits_MBC)
        tensor([2])
    """
    if logits_MBC.ndim != 3 or len(logits_MBC) == 0:
        raise ValueError(f"logits are [M, B, C], got {tuple(logits_MBC.shape)}")
    logits_MBC = logits_MBC.float()
    M, B, _ = logits_MBC.shape
    exit_B = torch.full((B,), M - 1, device=logits_MBC.device)
    active_B = torch.ones(B, dtype=torch.bool, device=logits_MBC.device)
    state = policy.init(logits_MBC[0])
    for m in range(M - 1):
        state, stop_B = step(policy, state, logits_MBC[m])
        exit_B[active_B & stop_B] = m
        active_B &= ~stop_B
    return exit_B


def parse(text: str) -> ExitPolicy:
    """Read a policy as typed on a command line: `patience=4`, `patient-confident=0.2,3`.

    Raises:
        ValueError: an unknown name, or numbers that don't fit.
    """
    name, _, values = text.partition("=")
    if name not in POLICIES:
        raise ValueError(f"no policy {name!r}; there are {sorted(POLICIES)}, e.g. patience=4")
    kind = POLICIES[name]
    known = field_types(kind)
    given = [value for value in values.split(",") if value]
    if len(given) > len(known):
        raise ValueError(f"{name} takes {list(known)}, got {values!r}")
    try:
        numbers = [
            int(value) if wanted is int else float(value)
            for wanted, value in zip(known.values(), given, strict=False)
        ]
        return kind(*numbers)
    except (TypeError, ValueError) as error:
        wanted = ",".join(known).upper()
        raise ValueError(f"can't read policy {text!r}: write {name}={wanted} ({error})") from error


def field_types(kind: type[ExitPolicy]) -> dict[str, Any]:
    """The names and types of a policy's fields, in order."""
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}


def to_json(policy: ExitPolicy) -> dict[str, Any]:
    """The policy as plain data: its class's name and its fields."""
    return {"class": type(policy).__name__, **asdict(policy)}


def from_json(data: dict[str, Any], others: Sequence[type[ExitPolicy]] = ()) -> ExitPolicy:
    """The policy that `to_json` wrote.

    Args:
        data: what `to_json` gave.
        others: classes of the user's own, beside the built-in ones.

    Raises:
        ValueError: a class that is neither built in nor among `others`.
    """
    known = {kind.__name__: kind for kind in (*POLICIES.values(), *others)}
    name = data["class"]
    if name not in known:
        raise ValueError(
            f"the saved policy is a {name}, which is not built in: pass policies=[{name}]"
        )
    return known[name](**{key: value for key, value in data.items() if key != "class"})


def _check_number(name: str, value: float) -> None:
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")


def _check_patience(value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"patience must be a whole number from 1, got {value!r}")


def _need_classes(logits_BC: Tensor, what: str) -> None:
    if logits_BC.shape[-1] < 2:
        raise ValueError(
            f"{what} needs at least 2 classes, these logits have {logits_BC.shape[-1]}; for "
            "regression use Patience(patience, tolerance=…) or FixedExit"
        )
