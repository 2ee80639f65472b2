"""Advice on what to lower when memory runs out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from multiexit.data.training_set import TrainingSet
from multiexit.training.config import TrainConfig


@contextmanager
def explained(config: TrainConfig, data: TrainingSet, may_mix: bool = True) -> Iterator[None]:
    """Context manager: re-raises running out of memory with the settings to lower.

    The message has their present values.

    Args:
        config, data: the run's settings and training set.
        may_mix: whether the network may train in mixed precision.

    Raises:
        torch.OutOfMemoryError: with the advice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        on_cpu = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        if not on_cpu and not isinstance(error, torch.OutOfMemoryError):
            raise
        size, times = config.batch_size, config.accumulation
        advice = []
        if may_mix and config.mixed_precision == "no":
            advice.append("use mixed_precision='bf16'")
        if not config.checkpoint_gradients:
            advice.append("set checkpoint_gradients")
        if data.lengths:
            advice.append(f"cut rows shorter (the longest has {max(data.lengths)} tokens)")
        if size > 1:
            half = -(-size // 2)
            advice.insert(0, f"lower batch_size, say to {half} with accumulation={2 * times}")
        stands = "; the last checkpoint stands, and resume=True with force=True goes on from it"
        raise torch.OutOfMemoryError(
            f"out of memory with batch_size={size}, accumulation={times}, "
            f"mixed_precision={config.mixed_precision!r}: {', or '.join(advice)}"
            f"{stands if config.output is not None else ''} ({error})"
        ) from error
