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
from typing import Any, ClassVar, get_type_hints

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
        """Look at one exit (the first included): the new state, and stop_B, bool [B].

        Where the heads learn to exit, `state["certainty"]` [B] is how sure this exit is.
        """

    def answer(self, state: State, logits_BC: Tensor) -> Tensor:
        """The logits [B, C] that a row leaving here takes along: this exit's, unless said else.

        Asked after `step`, but at the last exit without one.
        """
        return logits_BC


@dataclass(frozen=True)
class _Thresholded(ExitPolicy):
    """Compares a figure of one exit's logits with a threshold.

    Args:
        threshold: one for all exits, or a tuple with one per exit (the last needs none).
    """

    threshold: float | tuple[float, ...]
    of_classes: ClassVar[bool] = True
    """Whether the figure is one of a distribution over classes."""

    def __post_init__(self) -> None:
        if isinstance(self.threshold, list):  # as JSON has it
            object.__setattr__(self, "threshold", tuple(self.threshold))
        each = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
        if not each:
            raise ValueError("threshold must be a number, or one per exit; got none")
        for number in each:
            _check_number("threshold", number)

    def init(self, logits_BC: Tensor) -> State:
        if self.of_classes:
            _need_classes(logits_BC, type(self).__name__)
        if not isinstance(self.threshold, tuple):
            return {}
        return {"exit": logits_BC.new_zeros(len(logits_BC), dtype=torch.long)}

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        if not isinstance(self.threshold, tuple):
            return state, self._stops(state, logits_BC, self.threshold)
        exit_B = state["exit"]
        each = torch.tensor(self.threshold, device=logits_BC.device)
        threshold_B = each[exit_B.clamp(max=len(each) - 1)]
        stop_B = self._stops(state, logits_BC, threshold_B) & (exit_B < len(each))
        return {**state, "exit": exit_B + 1}, stop_B

    @abstractmethod
    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        """stop_B at this exit's threshold."""


@dataclass(frozen=True)
class Entropy(_Thresholded):
    """Stop when H(p) < threshold, in nats (BranchyNet 2016; DeeBERT 2020)."""

    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        return entropy(logits_BC) < threshold


@dataclass(frozen=True)
class NormalizedEntropy(_Thresholded):
    """Stop unless H(p) / log C > threshold, in 0..1 (FastBERT 2020, eq. 7: its "speed")."""

    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        return ~(normalized_entropy(logits_BC) > threshold)


@dataclass(frozen=True)
class MaxProb(_Thresholded):
    """Stop when max p ≥ threshold (The Right Tool 2020; MSDNet 2018 with one per exit)."""

    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        return logits_BC.softmax(-1).amax(-1) >= threshold


@dataclass(frozen=True)
class MostConfident(ExitPolicy):
    """`MaxProb` whose rows that never stop answer as the most confident exit did, not the last.

    Such rows run the whole network; of equally confident exits the earliest counts.
    Reference: Kaya et al., "Shallow-Deep Networks", ICML 2019, section 4.2, and its code.
    """

    threshold: float

    def __post_init__(self) -> None:
        _check_number("threshold", self.threshold)

    def init(self, logits_BC: Tensor) -> State:
        _need_classes(logits_BC, "MostConfident")
        return {"best": logits_BC, "sure": logits_BC.new_full((len(logits_BC),), -1.0)}

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        sure_B = logits_BC.softmax(-1).amax(-1)
        most = {
            "best": self.answer(state, logits_BC),
            "sure": torch.maximum(sure_B, state["sure"]),
        }
        return {**state, **most}, sure_B >= self.threshold

    def answer(self, state: State, logits_BC: Tensor) -> Tensor:
        surer_B = logits_BC.softmax(-1).amax(-1) > state["sure"]
        return torch.where(surer_B.unsqueeze(-1), logits_BC, state["best"])


@dataclass(frozen=True)
class Margin(_Thresholded):
    """Stop when the two largest probabilities differ by at least the threshold."""

    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        top = logits_BC.softmax(-1).topk(2).values
        return top[:, 0] - top[:, 1] >= threshold


@dataclass(frozen=True)
class Certainty(_Thresholded):
    """Stop when the exit's own learned certainty ≥ threshold, in 0..1 (BERxiT 2021).

    For models whose head learns to exit (`head="pooler+lte"`, recipe `berxit`); serves
    regression too.
    """

    of_classes: ClassVar[bool] = False

    def _stops(self, state: State, logits_BC: Tensor, threshold: float | Tensor) -> Tensor:
        if "certainty" not in state:
            raise ValueError(
                "Certainty goes by a head that learns to exit, and this model has none: make it "
                "with head='pooler+lte' (or 'linear+lte') and train it by the recipe 'berxit'"
            )
        return state["certainty"] >= threshold


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
        _need_classes(logits_BC, "PatientConfident")
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
    "most-confident": MostConfident,
    "margin": Margin,
    "patience": Patience,
    "patient-confident": PatientConfident,
    "certainty": Certainty,
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


def step(
    policy: ExitPolicy, state: State, logits_BC: Tensor, certainty_B: Tensor | None = None
) -> tuple[State, Tensor]:
    """`policy.step`, with its answer checked.

    Raises:
        ValueError: no pair, or a stop that is no bool tensor [B].
    """
    if certainty_B is not None:
        state = {**state, "certainty": certainty_B.float()}
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


def simulate(policy: ExitPolicy, logits_MBC: Tensor, certainty_MB: Tensor | None = None) -> Tensor:
    """Where each row would leave, from stored logits of all exits.

    Gives what `MultiExitModel.predict` gives, without running the model again.

    Args:
        policy: any `ExitPolicy`.
        logits_MBC: all exits' logits [M, B, C].
        certainty_MB: how sure each exit is, of models that learn to exit.

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
    return answers(policy, logits_MBC, certainty_MB)[0]


def answers(
    policy: ExitPolicy, logits_MBC: Tensor, certainty_MB: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`simulate`, and what each row answers: exit_B [B] and answer_BC [B, C]."""
    if logits_MBC.ndim != 3 or len(logits_MBC) == 0:
        raise ValueError(f"logits are [M, B, C], got {tuple(logits_MBC.shape)}")
    logits_MBC = logits_MBC.float()
    M, B, _ = logits_MBC.shape
    exit_B = torch.full((B,), M - 1, device=logits_MBC.device)
    active_B = torch.ones(B, dtype=torch.bool, device=logits_MBC.device)
    state = policy.init(logits_MBC[0])
    answer_BC = torch.empty_like(logits_MBC[0])
    for m in range(M - 1):
        certainty_B = None if certainty_MB is None else certainty_MB[m]
        state, stop_B = step(policy, state, logits_MBC[m], certainty_B)
        leaves_B = active_B & stop_B
        exit_B[leaves_B] = m
        answer_BC[leaves_B] = policy.answer(state, logits_MBC[m])[leaves_B]
        active_B &= ~stop_B
    answer_BC[active_B] = policy.answer(state, logits_MBC[-1])[active_B]
    return exit_B, answer_BC


def parse(text: str) -> ExitPolicy:
    """Read a policy as typed on a command line: `patience=4`, `patient-confident=0.2,3`.

    A threshold per exit is written with slashes: `max-prob=0.99/0.95/0.9`.

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
            int(value) if wanted is int else _numbers(value)
            for wanted, value in zip(known.values(), given, strict=False)
        ]
        return kind(*numbers)
    except (TypeError, ValueError) as error:
        wanted = ",".join(known).upper()
        raise ValueError(f"can't read policy {text!r}: write {name}={wanted} ({error})") from error


def _numbers(text: str) -> float | tuple[float, ...]:
    return tuple(float(part) for part in text.split("/")) if "/" in text else float(text)


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
