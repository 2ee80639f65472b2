"""The loss of a recipe's phase as a module, for training loops that aren't ours.

Letters: M exits, B batch rows, T tokens or times, C classes.
"""

from typing import Any

from torch import Tensor, nn

from multiexit.data.columns import Columns
from multiexit.evaluation import metrics
from multiexit.evaluation.judging import exit_scores
from multiexit.evaluation.metrics import Metric
from multiexit.evaluation.outputs import Outputs
from multiexit.losses import topology
from multiexit.losses.temperature import Constant
from multiexit.losses.weights.state import Omega
from multiexit.model.model import MultiExitModel
from multiexit.recipes import Phase, Recipe
from multiexit.runtime import train_mode
from multiexit.training import checks
from multiexit.training.config import TrainConfig
from multiexit.training.phase import factors_throughout, freeze_untrained, learns_from_labels
from multiexit.training.training_pass import TrainingPass

OF_THE_TRAINER = ("ema", "sampling", "mixup", "cutmix")
"""Settings that would change what is learned, and that the loss of a batch can't see to."""


class PhaseLoss(nn.Module):
    """A model with the loss of one phase of a recipe; calling it on a batch gives that loss.

        loss = (W ∘ A ∘ L).sum() + what the phase adds

    Only what the phase trains has gradients from then on, and what it doesn't train is in
    evaluation mode while it trains. The recipe's policy becomes the model's. How long and at which
    rate to train is the loop's, and so is `recipe.finish`.

    Args:
        model: changed in place.
        recipe: the method.
        phase: the number of its phase, counted from 0.
        config: what it says of the loss (`label_smoothing`, `class_weights`) and of the pass
            (`compile`, `channels_last`, `checkpoint_gradients`) counts here.

    Raises:
        ValueError: a phase that a loop of one loss and one batch can't train: with learned Ω,
            weights of rows, coefficients or a temperature that change, gradient surgery, or a call
            before each step; a configuration with `ema`, `sampling`, `mixup` or `cutmix`, which
            are the loop's and its loader's.

    Attributes:
        columns: leaves out of a batch what the network doesn't take.

    Example:
        >>> import torch, multiexit as mx
        >>> from multiexit.integrations import PhaseLoss
        >>> backbone = mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)))
        >>> model = mx.MultiExitModel(backbone, num_classes=2)
        >>> loss, logits_MBC = PhaseLoss(model, mx.recipe("joint"))(
        ...     (torch.rand(3, 4), torch.tensor([0, 1, 0]))
        ... )
        >>> loss.requires_grad, logits_MBC.shape
        (True, torch.Size([2, 3, 2]))
    """

    def __init__(
        self,
        model: MultiExitModel,
        recipe: Recipe,
        phase: int = 0,
        config: TrainConfig | None = None,
    ):
        super().__init__()
        config = TrainConfig() if config is None else config
        checks.check_parts(model, recipe, config)
        checks.check_all(model, recipe, config)
        for name in OF_THE_TRAINER:
            if getattr(config, name) is not None:
                raise ValueError(
                    f"{name}={getattr(config, name)!r} is for multiexit.Trainer to do: leave it "
                    "out, and use what this loop or its loader has for it"
                )
        if phase not in range(len(recipe.phases)):
            raise ValueError(
                f"{recipe.name!r} has the phases 0..{len(recipe.phases) - 1}, got {phase!r}"
            )
        chosen = recipe.phases[phase]
        teaches_MM = topology.resolve(chosen.topology, model.num_exits)
        shares_M = model.cost().shares_M
        A_TMM = factors_throughout(chosen, shares_M)
        if why := _refusal(chosen, bool((A_TMM[0] != A_TMM).any())):
            raise ValueError(
                f"phase {phase} of {recipe.name!r} {why}, which is for multiexit.Trainer to train: "
                "use that, or a recipe such as 'joint'"
            )
        freeze_untrained(model, chosen)
        model.policy, model.calibration = recipe.policy, None
        model.backbone.find_overwritten()  # before anything is compiled
        labelled = learns_from_labels(chosen, shares_M)
        self.training_pass = TrainingPass(model, chosen, labelled, config)
        W_MM = Omega(chosen.learner, teaches_MM, 1.0, 1.0, config.seed).value()  # never moves
        self.register_buffer("factors_MM", W_MM * A_TMM[0], persistent=False)
        self.tau = chosen.temperature.value
        self.columns = Columns(model.backbone.start, model.own_inputs)

    @property
    def model(self) -> MultiExitModel:
        """What is trained."""
        return self.training_pass.model

    def train(self, mode: bool = True) -> "PhaseLoss":
        """Train mode, but for what the phase doesn't train; or evaluation mode."""
        super().train(mode)
        if mode:
            train_mode(self.model)
        return self

    def forward(self, batch: Any) -> tuple[Tensor, Tensor]:
        """The loss of a batch, a mean over its rows, and all exits' logits [M, B, C].

        Args:
            batch: `(inputs, labels)`, or a mapping with `"labels"`.

        Raises:
            ValueError: labels that are missing or don't fit, or inputs that are missing.
        """
        losses = self.training_pass(self.columns(batch), self.tau)
        factors_MM: Any = self.factors_MM
        loss = (factors_MM.to(losses.L_MM) * losses.L_MM).sum()
        return loss if losses.extra is None else loss + losses.extra, losses.logits_MBC


def _refusal(phase: Phase, coefficients_change: bool) -> str | None:
    """Why a loop of one loss and one batch can't train a phase; None if it can."""
    for refused, why in (
        (phase.learner.learns, "learns the loss weights Ω beside the network"),
        (phase.learner.weighs_rows, "weighs rows by how far training is"),
        (coefficients_change, "has coefficients that change while it trains"),
        (not isinstance(phase.temperature, Constant), "has a temperature that changes"),
        (phase.surgery is not None, "changes gradients before they are added up"),
        (phase.before_step is not None, "changes the network before each step"),
    ):
        if refused:
            return why
    return None


def exit_figures(
    model: MultiExitModel,
    logits_MBC: Tensor,
    labels_B: Tensor,
    metric: str | Metric | None = None,
) -> dict[str, float]:
    """Each exit's scores by name, and the mean of the main ones.

    Args:
        model: whose logits these are.
        logits_MBC: of all rows of a set, [M, B, C], or of tokens [M, B, T, C].
        labels_B: its labels, as the model's problem has them.
        metric: as for `multiexit.TrainConfig`.

    Returns:
        `exit_0_score`, `exit_0_accuracy`, …, and `mean`.

    Raises:
        ValueError: what the metric raises.

    Example:
        >>> import torch, multiexit as mx
        >>> from multiexit.integrations import exit_figures
        >>> backbone = mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)))
        >>> model = mx.MultiExitModel(backbone, num_classes=2)
        >>> logits_MBC = torch.tensor([[[1.0, 0], [2, 0]], [[0, 2], [2, 0]]])
        >>> exit_figures(model, logits_MBC, torch.tensor([1, 0]))["mean"]
        0.75
    """
    metric = metrics.fitting(metric, model.num_classes, model.problem, model.labels)
    outputs = Outputs(
        logits_MBC.float(), labels_B, model.cost(), metric, problem=model.problem,
        names=model.labels,
    )  # fmt: skip
    scores = exit_scores(outputs)
    figures = {
        f"exit_{m}_{name}": value for m, row in enumerate(scores) for name, value in row.items()
    }
    return {**figures, "mean": sum(row["score"] for row in scores) / len(scores)}
