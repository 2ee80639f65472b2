"""For the `Trainer` of transformers: a model that gives the loss of a recipe's phase.

Letters: M exits, B batch rows, C classes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from multiexit.evaluation.metrics import Metric
from multiexit.files.weights import name_once
from multiexit.integrations.phase_loss import PhaseLoss, exit_figures
from multiexit.model.model import MultiExitModel
from multiexit.recipes import Recipe
from multiexit.training.config import TrainConfig


class ForTrainer(nn.Module):
    """A model as `transformers.Trainer` trains it: `labels` in, `loss` and `logits` out.

    `Trainer` looks for the names of inputs in this module's `forward`, so its arguments need
    `remove_unused_columns=False`; columns that the network doesn't take are left out here. What is
    trained is the model itself: `model.save_pretrained(…)` saves it for `multiexit`.

    Args:
        model, recipe, phase, config: as for `multiexit.integrations.PhaseLoss`.

    Example:
        >>> import torch, multiexit as mx
        >>> from multiexit.integrations.transformers import ForTrainer
        >>> backbone = mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)))
        >>> trained = ForTrainer(mx.MultiExitModel(backbone, num_classes=2), mx.recipe("joint"))
        >>> outputs = trained(x=torch.rand(3, 4), labels=torch.tensor([0, 1, 0]))
        >>> outputs["loss"].ndim, outputs["logits"].shape  # [B, M, C]: rows first, as it gathers
        (0, torch.Size([3, 2, 2]))
    """

    accepts_loss_kwargs = False  # the loss is a mean over a batch's rows

    def __init__(
        self,
        model: MultiExitModel,
        recipe: Recipe,
        phase: int = 0,
        config: TrainConfig | None = None,
    ):
        super().__init__()
        self.phase_loss = PhaseLoss(model, recipe, phase, config)
        name_once(self)  # for checkpoints

    def forward(self, labels: Tensor | None = None, **inputs: Any) -> dict[str, Tensor]:
        """The loss, where there are labels, and all exits' logits [B, M, C].

        Raises:
            ValueError: no inputs, or what `PhaseLoss` raises.
        """
        if not inputs:
            raise ValueError(
                "a batch has no inputs: set remove_unused_columns=False in TrainingArguments, "
                "since Trainer can't tell the network's inputs by this module's forward"
            )
        if labels is None and not self.training:
            logits_MBC = self.phase_loss.model(**self.phase_loss.columns(inputs))
            return {"logits": logits_MBC.movedim(0, -2)}
        batch = inputs if labels is None else {**inputs, "labels": labels}
        loss, logits_MBC = self.phase_loss(batch)
        return {"loss": loss, "logits": logits_MBC.movedim(0, -2)}


def compute_metrics(
    model: MultiExitModel, metric: str | Metric | None = None
) -> Callable[[Any], dict[str, float]]:
    """Make what `transformers.Trainer` takes as `compute_metrics`: every exit's scores.

    Args:
        model: that is trained.
        metric: as for `multiexit.TrainConfig`.

    Returns:
        A function of its predictions, [B, M, C] and labels, that gives `exit_0_score`, …, and
        `mean`, which `metric_for_best_model` may name.

    Example:
        >>> import numpy as np, torch, multiexit as mx
        >>> from multiexit.integrations.transformers import compute_metrics
        >>> backbone = mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)))
        >>> model = mx.MultiExitModel(backbone, num_classes=2)
        >>> compute_metrics(model)((np.array([[[1.0, 0], [0, 1]]]), np.array([1])))["mean"]
        0.5
    """

    def figures(predictions: Any) -> dict[str, float]:
        logits_BMC, labels_B = (torch.as_tensor(each) for each in tuple(predictions)[:2])
        return exit_figures(model, logits_BMC.movedim(-2, 0), labels_B, metric)

    return figures
