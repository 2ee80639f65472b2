"""Whether a run's files have room on the disk, looked at before it is trained."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from multiexit.model.model import MultiExitModel
from multiexit.recipes import Phase
from multiexit.training.config import TrainConfig
from multiexit.training.phase import trained_parameters


def check(model: MultiExitModel, phase: Phase, config: TrainConfig, old: Iterable[Path]) -> None:
    """Refuse a disk that can't hold the model and one checkpoint.

    A checkpoint has the parameters and, of those that are trained, what the optimizer keeps.

    Args:
        model, phase, config: of the run; its folder is there.
        old: files and folders that are cleared away before it begins.

    Raises:
        ValueError: with what is free and what is needed.
    """
    assert config.output is not None
    kept = 2 if config.optimizer == "adamw" else int(config.momentum > 0)
    trained = [p for p in trained_parameters(model, phase) if p.requires_grad]
    needed = 2 * _bytes([*model.parameters(), *model.buffers()]) + kept * _bytes(trained)
    cleared = [file for path in old for file in (path, *path.rglob("*")) if file.is_file()]
    free = shutil.disk_usage(config.output).free + sum(file.stat().st_size for file in cleared)
    if free < needed:
        raise ValueError(
            f"the disk of {config.output} has {free / 1e9:.3g} GB left, and the model and a first "
            f"checkpoint take {needed / 1e9:.3g} GB: make room, or name another output"
        )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
