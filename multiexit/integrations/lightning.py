"""For Lightning: a model with a recipe's loss, optimiser and schedule as a `LightningModule`.

Letters: M exits, B batch rows, T tokens, C classes.
"""

from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from multiexit.data.batches import unpack
from multiexit.data.padding import filled_up
from multiexit.integrations.phase_loss import PhaseLoss, exit_figures
from multiexit.losses.labels import IGNORED
from multiexit.model.model import MultiExitModel
from multiexit.recipes import Recipe
from multiexit.training import layer_decay
from multiexit.training.config import TrainConfig
from multiexit.training.optimizer import build_optimizer, learning_rate


class MultiExitModule(lightning.LightningModule):
    """A model as Lightning trains it.

    It logs `loss`, and of a validation set `val_exit_0_score`, …, and `val_mean`; on several
    devices these are means over what each of them saw. Of the configuration, the loss's and the
    pass's settings count, and those of the optimiser and its schedule; epochs, devices, precision,
    clipping and checkpoints are Lightning's.

    Args:
        model, recipe, phase, config: as for `multiexit.integrations.PhaseLoss`.

    Example:
        >>> import torch, multiexit as mx
        >>> from multiexit.integrations.lightning import MultiExitModule
        >>> backbone = mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)))
        >>> model = mx.MultiExitModel(backbone, num_classes=2)
        >>> module = MultiExitModule(model, mx.recipe("joint"), config=mx.TrainConfig(lr=1e-3))
        >>> module.loss.model is model
        True
    """

    def __init__(
        self,
        model: MultiExitModel,
        recipe: Recipe,
        phase: int = 0,
        config: TrainConfig | None = None,
    ):
        super().__init__()
        self.config = TrainConfig() if config is None else config
        self.loss = PhaseLoss(model, recipe, phase, self.config)
        self._lr_factor = recipe.phases[phase].lr
        self._seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """The loss of a batch."""
        loss, _ = self.loss(batch)
        self.log("loss", loss.detach())
        return loss

    def validation_step(self, batch: Any, batch_index: int) -> None:
        """Keep what all exits say."""
        _, logits_MBC = self.loss(batch)
        self._seen.append((logits_MBC.cpu(), unpack(batch)[2].cpu()))

    def on_validation_epoch_end(self) -> None:
        """Score every exit."""
        model, seen, self._seen = self.loss.model, self._seen, []
        if model.problem == "token-classification":
            T = max(labels_BT.shape[1] for _, labels_BT in seen)
            seen = [(filled_up(x, 2, T), filled_up(y, 1, T, IGNORED)) for x, y in seen]
        logits, labels = zip(*seen, strict=True)
        figures = exit_figures(model, torch.cat(logits, 1), torch.cat(labels), self.config.metric)
        self.log_dict({f"val_{name}": value for name, value in figures.items()}, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """The optimiser and its schedule, as `multiexit.Trainer` has them."""
        model, config = self.loss.model, self.config
        factors = layer_decay.by_parameter(model, config.layer_decay, model)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = build_optimizer(trained, config, factors)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * self._lr_factor * group["factor"]
        steps = int(self.trainer.estimated_stepping_batches)

        def share(step: int) -> float:
            return learning_rate(config, min(step, steps - 1), steps) / config.lr

        scheduler = {"scheduler": LambdaLR(optimizer, share), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}
