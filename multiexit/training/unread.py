"""The losses and weights of steps, kept on the device until they are read, checked and logged.

Letters: M exits.
"""

import warnings
from typing import Any

import torch
from accelerate.utils import reduce
from torch import Tensor

from multiexit.runtime import user_level
from multiexit.training.finite import check_finite
from multiexit.training.stepper import Stepper, StepRecord


class UnreadLosses:
    """Losses of recent steps, still on the device.

    Reading blocks until the device catches up, so it happens every `log_every` steps.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[int, StepRecord]] = []
        self._warned = False

    def add(self, number: int, step: StepRecord) -> None:
        """Keep the record of a step.

        Args:
            number: of the step in its phase, counted from 0.
            step: its losses and weights, on the device.
        """
        self._steps.append((number, step))

    @property
    def steps(self) -> list[tuple[int, StepRecord]]:
        """The steps since the last reading, as `restore` takes them from a checkpoint."""
        return list(self._steps)

    def restore(self, steps: list[tuple[int, StepRecord]], device: torch.device) -> None:
        """Take back the steps that a checkpoint holds."""
        self._steps = [
            (number, StepRecord(*(t.to(device) for t in step))) for number, step in steps
        ]

    def check(self, stepper: Stepper) -> None:
        """Wait for the device, and look at what is unread without reading it.

        All processes must call it; losses are their means.

        Raises:
            FloatingPointError: a term that counts, or a weight, is NaN or infinite.
        """
        if not self._steps:
            return
        numbers, steps = zip(*self._steps, strict=True)
        loss, L, W, A, rows = (torch.stack(values) for values in zip(*steps, strict=True))
        # Averaged over processes, so that a NaN on one is seen by all.
        loss, L = (reduce(values, "mean") for values in (loss, L))
        self._steps = list(zip(numbers, map(StepRecord, loss, L, W, A, rows), strict=True))  # type: ignore[arg-type]
        check_finite(L.cpu(), A.cpu(), list(numbers))  # type: ignore[union-attr]
        if self._logs_weights(stepper) and not stepper.omega.value().isfinite().all():
            raise FloatingPointError(
                f"the loss weights are NaN or infinite after step {numbers[-1] + 1}, so a loss on "
                "D2 was: look for broken inputs, or lower the learning rates; the last checkpoint "
                "stands"
            )

    def read(self, stepper: Stepper) -> dict[str, Any]:
        """The steps since the last reading as one row of the history; {} if there were none.

        Losses are means over these steps' rows.

        Raises:
            FloatingPointError: as `check` does.
        """
        if not self._steps:
            return {}
        self.check(stepper)
        steps = [step for _, step in self._steps]
        loss, L, _, A, rows = (torch.stack(values).cpu() for values in zip(*steps, strict=True))
        share_S = (rows / rows.sum()).to(L.dtype)  # a short step counts less
        own_M = share_S @ L.diagonal(dim1=1, dim2=2)
        self._steps.clear()
        row: dict[str, Any] = {
            "loss": float(share_S @ loss),
            "own_M": [round(value, 6) for value in own_M.tolist()],
            "lr": stepper.optimizer.param_groups[0]["lr"],
        }
        if not stepper.labelled:
            row.pop("own_M")
        if self._logs_weights(stepper):
            row["W_MM"] = self._weights(stepper.omega.value().cpu(), A[-1])
        return row

    def _logs_weights(self, stepper: Stepper) -> bool:
        return stepper.omega.learner.learns and not stepper.omega.weighs_rows

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
