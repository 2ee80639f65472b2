"""The losses and weights of steps, kept on the device until they are read, checked and logged.

Letters: S steps, M exits.
"""

import warnings
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor

from multiexit.training.finite import check_finite
from multiexit.training.stepper import StepRecord
from multiexit_runner.user_line import user_level


class UnreadLosses:
    """Losses of recent steps, still on the device.

    Reading blocks until the device catches up, so it happens every `log_every` steps.

    Attributes:
        steps: those since the last reading.
    """

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []
        self._warned = False

    def check(self) -> None:
        """Wait for the device, and look at what is unread without reading it.

        All processes must call it; losses are their means.

        Raises:
            FloatingPointError: a term that counts, or a weight, is NaN or infinite.
        """
        steps = self.steps
        if not steps:
            return
        # Averaged over processes, so that a NaN on one is seen by all.
        loss_S = reduce(torch.stack([step.loss for step in steps]), "mean")
        L_SMM = reduce(torch.stack([step.L_MM for step in steps]), "mean")
        A_SMM, W_MM = torch.stack([step.A_MM for step in steps]), steps[-1].W_MM
        self.steps = [
            step._replace(loss=loss, L_MM=L_MM)
            for step, loss, L_MM in zip(steps, loss_S, L_SMM, strict=True)  # type: ignore[arg-type]
        ]
        check_finite(L_SMM.cpu(), A_SMM.cpu(), [step.step for step in steps])  # type: ignore[union-attr]
        if W_MM is not None and not W_MM.isfinite().all():
            raise FloatingPointError(
                f"the loss weights are NaN or infinite after step {steps[-1].step + 1}, so a loss "
                "on D2 was: look for broken inputs, or lower the learning rates; the last "
                "checkpoint stands"
            )

    def read(self) -> dict[str, Any]:
        """The steps since the last reading as one row of the history; {} if there were none.

        Losses are means over these steps' rows.

        Raises:
            FloatingPointError: as `check` does.
        """
        if not self.steps:
            return {}
        self.check()
        steps, self.steps = self.steps, []
        loss_S = torch.stack([step.loss for step in steps]).cpu()
        L_SMM = torch.stack([step.L_MM for step in steps]).cpu()
        rows_S = torch.tensor([float(step.rows) for step in steps])
        share_S = (rows_S / rows_S.sum()).to(L_SMM.dtype)  # a short step counts less
        row: dict[str, Any] = {"loss": float(share_S @ loss_S)}
        last = steps[-1]
        if last.labelled:
            own_M = share_S @ L_SMM.diagonal(dim1=1, dim2=2)
            row["own_M"] = [round(value, 6) for value in own_M.tolist()]
        row["lr"] = last.lr
        if last.W_MM is not None:
            row["W_MM"] = self._weights(last.W_MM.cpu(), last.A_MM.cpu())
        return row

    def _weights(self, W_MM: Tensor, A_MM: Tensor) -> list[list[float | None]]:
        least = W_MM[A_MM != 0].min()
        if not self._warned and least <= 0:
            self._warned = True
            warnings.warn(
                f"a loss weight has fallen to {float(least):.3f}: its term no longer trains, or "
                "trains backwards; parametrization='softmax' has no such end",
                stacklevel=user_level(),
            )
        return [
            [round(w, 5) if a != 0 else None for w, a in zip(ws, factors, strict=True)]
            for ws, factors in zip(W_MM.tolist(), A_MM.tolist(), strict=True)
        ]
