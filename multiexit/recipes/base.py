"""Training methods as data: phases, each saying who is trained, on which terms, and how."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn

from multiexit.arguments import check_fields, check_whole
from multiexit.evaluation.outputs import Outputs
from multiexit.losses import coefficients
from multiexit.losses.coefficients import Coefficients
from multiexit.losses.criterion import Criterion
from multiexit.losses.gradients import Branch, Surgery
from multiexit.losses.matrix import Divergence
from multiexit.losses.temperature import Constant, Temperature
from multiexit.losses.topology import Topology
from multiexit.losses.weights.learners import Learner, Uniform
from multiexit.model.heads import Factory
from multiexit.model.model import MultiExitModel
from multiexit.policies import ExitPolicy

TRAIN = ("all", "last", "heads")
Part = Callable[[MultiExitModel], Iterable[nn.Parameter]]
"""`model -> parameters`: those that a phase trains."""


class Seen(NamedTuple):
    """A batch and what the exits made of it, a `Pass`'s fields, for a phase's extra loss.

    Args:
        args, inputs: what the model was given, by place and by name.
        labels_B: the labels [B], as the problem has them, or None.
        logits_MBC: all exits' logits [M, B, C].
        certainty_MB: how sure each exit is, in 0..1, of heads that learn to exit, or None.
        features: the exits' features, [B, …] each.
        problem: the model's (`MultiExitModel.problem`); None is classification, or with one output
            regression.
        criterion: how labels count, by the run's settings.

    Example:
        An extra loss that keeps the last exit's logits small:

        >>> import multiexit as mx
        >>> phase = mx.Phase(extra=lambda seen: 0.01 * seen.logits_MBC[-1].square().mean())
        >>> mx.recipes.Seen._fields[2:6]
        ('labels_B', 'logits_MBC', 'certainty_MB', 'features')
    """

    args: Any
    inputs: Any
    labels_B: Tensor | None
    logits_MBC: Tensor
    certainty_MB: Tensor | None
    features: list[Tensor]
    problem: str | None = None
    criterion: Criterion = Criterion()


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    Args:
        topology: `"none"`, `"last"`, `"lle"`, `"lae"`, a function of M, or a bool matrix.
        coefficients: the method's fixed factors A of the loss terms; several take turns, step by
            step.
        learner: how the weights Ω are learned.
        temperature: τ of the distillation terms.
        divergence: `"ce"` (eq. 2) or `"kl"`; of vectors `"similarity"` too, see
            `multiexit.loss_matrix`.
        train: who is trained: `"all"`; `"last"`, all but the early heads; `"heads"`, the early
            heads alone; or a function of the model that gives parameters. What is not trained is
            in evaluation mode: a frozen trunk keeps its BatchNorm statistics and has no dropout.
        epochs: how long; None is the run's own number.
        lr: factor of the run's learning rate.
        extra: what is added to the loss, a scalar from `Seen`.
        branch: how gradients are scaled where exits leave the trunk.
        surgery: what happens to the parts of Θ's gradient before the step.
        before_step: called with the model and the share of the phase that is done, in [0, 1).
        keep: `"last"`, the phase's last epoch; None is the one whose exits score best on a dev set.

    Raises:
        ValueError: an unknown `train`, divergence or `keep`, epochs that are no whole number from
            1, a rate that isn't above 0, a learner, temperature or surgery that is none or has
            numbers that are no fields, no rule for the coefficients, or parts that don't go
            together.

    Example:
        Two epochs on the early heads alone, which learn from the labels and from the last exit:

        >>> import multiexit as mx
        >>> phase = mx.Phase("last", train="heads", epochs=2, divergence="kl")
        >>> phase.learner
        Uniform(parametrization='softmax')
    """

    topology: str | Topology | Tensor = "none"
    coefficients: Coefficients | tuple[Coefficients, ...] = coefficients.summed
    learner: Learner = field(default_factory=Uniform)
    temperature: Temperature = field(default_factory=Constant)
    divergence: Divergence = "ce"
    train: str | Part = "all"
    epochs: int | None = None
    lr: float = 1.0
    extra: Callable[[Seen], Tensor] | None = None
    branch: Branch | None = None
    surgery: Surgery | None = None
    before_step: Callable[[MultiExitModel, float], None] | None = None
    keep: Literal["last"] | None = None

    def __post_init__(self) -> None:
        if not callable(self.train) and self.train not in TRAIN:
            raise ValueError(
                f"a phase trains 'all', 'last', 'heads' or what a function says, not {self.train!r}"
            )
        if self.divergence not in get_args(Divergence):
            raise ValueError(
                f"divergence must be one of {get_args(Divergence)}, got {self.divergence!r}"
            )
        if self.keep not in (None, "last"):
            raise ValueError(f"a phase keeps 'last' or, by None, the best, not {self.keep!r}")
        if self.epochs is not None:
            check_whole("a phase's epochs", self.epochs)
        if not self.lr > 0:
            raise ValueError(f"a phase's lr is a factor above 0, got {self.lr}")
        self._check_parts()
        if self.surgery is not None and (self.learner.weighs_rows or self.extra is not None):
            raise ValueError(
                "surgery takes the loss matrix apart, so it goes neither with weights of rows nor "
                "with an extra loss"
            )
        if self.learner.looks_back and (self.surgery is not None or self.branch is not None):
            raise ValueError(
                f"{type(self.learner).__name__} follows the gradient through Θ's own step, which "
                "surgery and branches change: use it without them"
            )

    def _check_parts(self) -> None:
        """Refuse what is no learner, temperature, surgery or rule, as classes and numbers are."""
        for name, part, kind, such_as in (
            ("learner", self.learner, Learner, "weights.SLO()"),
            (
                "temperature",
                self.temperature,
                Temperature,
                "multiexit.losses.temperature.Constant(2.0)",
            ),
            ("surgery", self.surgery, Surgery, "gradients.Conflictless()"),
        ):
            if name == "surgery" and part is None:
                continue
            if not isinstance(part, kind):
                got = f"the class {part.__name__}" if isinstance(part, type) else repr(part)
                raise ValueError(
                    f"a phase's {name} is one such as multiexit.{such_as}; got {got:.80}"
                )
            check_fields(type(part))
        rules = self.turns
        if not rules or not all(map(callable, rules)):
            raise ValueError(
                "a phase's coefficients are a function (teaches_MM, progress, shares_M) that gives "
                f"[M, M], or a tuple of such that take turns; got {self.coefficients!r:.80}"
            )

    @property
    def turns(self) -> tuple[Coefficients, ...]:
        """The rules for A that take turns."""
        rules = self.coefficients
        return rules if isinstance(rules, tuple) else (rules,)


@dataclass(frozen=True)
class Recipe:
    """A training method.

    Args:
        name: as on the command line.
        paper, section, year: where it comes from.
        summary: one line.
        phases: what is trained, one after another; each starts from the best weights of the one
            before, by the exits that one trained.
        policy: how its paper stops.
        head: the exit head it asks for, see `multiexit.heads.build`; None is the backbone's own.
        finish: called at the end with the model and its outputs on the dev set.
        pretrained: of methods that put exits on a finished network: True, it is trained already, so
            that network and last exit stay as they are; False, the first phase trains it.

    Raises:
        ValueError: no phases.

    Example:
        A method with another way to stop:

        >>> from dataclasses import replace
        >>> import multiexit as mx
        >>> replace(mx.recipe("joint"), policy=mx.Patience(2)).policy
        Patience(patience=2, tolerance=None)
    """

    name: str
    paper: str
    section: str
    year: int
    summary: str
    phases: tuple[Phase, ...]
    policy: ExitPolicy
    head: str | Factory | None = None
    finish: Callable[[MultiExitModel, Outputs], None] | None = None
    pretrained: bool | None = None

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError(f"recipe {self.name!r} has no phases")
