"""The state of a run: what a checkpoint holds, and how it is put back."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from multiexit import randomness
from multiexit.data.batches import move
from multiexit.evaluation.history import History
from multiexit.training import sharding
from multiexit.training.finite import check_parameters
from multiexit.training.stepper import Stepper, StepRecord
from multiexit.training.unread import UnreadLosses


@dataclass
class Position:
    """The place that a run has reached.

    Args:
        phase, epoch: the running ones.
        batch: Θ's steps done in this epoch; `step` in this phase, `total` in the run.
        second: how often B2 was drawn in this epoch.
        stale: evaluations since the best.
        stopped: whether a callback has ended the phase.
    """

    phase: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    total: int = 0
    second: int = 0
    stale: int = 0
    stopped: bool = False


@dataclass
class State:
    """The moving parts of a run, beside its stepper.

    Args:
        saved: a checkpoint's state that is still to be put back, into its phase's stepper.
        best: the weights of the phase's best epoch.
        unread: the losses that weren't read yet.
    """

    saved: Any = None
    position: Position = field(default_factory=Position)
    history: History = field(default_factory=History)
    best: dict[str, Tensor] | None = None
    unread: UnreadLosses = field(default_factory=UnreadLosses)

    @property
    def first_phase(self) -> int:
        """The phase to begin with."""
        return self.saved["position"]["phase"] if self.saved else 0

    def checkpoint(self, stepper: Stepper, accelerator: Accelerator) -> dict[str, Any] | None:
        """All of it for a checkpoint, on the first process; all processes must call it.

        Raises:
            FloatingPointError: a loss or a parameter is NaN or infinite.
        """
        self.unread.check()
        check_parameters(stepper.model, self.position.step)
        moved = {"model": sharding.parameters(stepper.model), "stepper": stepper.state_dict()}
        random_by_process = gather_object([randomness.states()])
        if not accelerator.is_main_process:
            return None
        return {
            "position": asdict(self.position),
            "history": asdict(self.history),
            "unread": self.unread.steps,
            "best": self.best,
            **moved,
            "random": random_by_process,
        }

    def restore(self, stepper: Stepper, rank: int, device: torch.device) -> None:
        """Put everything back to where the checkpoint was taken, if there was one.

        Args:
            stepper: of the checkpoint's phase.
            rank: this process's number.
            device: where losses are kept.

        Raises:
            ValueError: it doesn't fit this run's network or optimisers.
        """
        saved, self.saved = self.saved, None
        if saved is None:
            return
        try:
            stepper.load_state_dict(saved["stepper"])  # what doesn't fit is refused first
            sharding.set_parameters(stepper.model, saved["model"])
            stepper.load_average(saved["stepper"])
            self.best = saved["best"]
            self.history = History(**saved["history"])
            self.unread.steps = [StepRecord(*move(step, device)) for step in saved["unread"]]
            self.position = Position(**saved["position"])
            if rank < len(saved["random"]):  # there were fewer processes
                randomness.set_states(saved["random"][rank])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                "the checkpoint's weights, optimisers or loss weights don't fit this run: "
                + " ".join(str(error).split())
            ) from error
