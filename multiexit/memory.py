"""What to lower when memory runs out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from multiexit.config import TrainConfig
from multiexit.data.rows import Rows


@contextmanager
def explained(config: TrainConfig, data: Rows) -> Iterator[None]:
    """Inside, an error of memory comes with what to lower, and what it is now.

    Raises:
        torch.OutOfMemoryError: with the advice.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        longest = f" (the longest has {max(data.lengths)} tokens)" if data.lengths else ""
        half = max(config.batch_size // 2, 1)
        more = config.accumulation * max(config.batch_size // half, 1)
        raise torch.OutOfMemoryError(
            f"out of memory with batch_size={config.batch_size}, "
            f"accumulation={config.accumulation}, mixed_precision={config.mixed_precision!r}: "
            f"lower batch_size and raise accumulation (batch_size={half}, accumulation={more} "
            f"make the same steps of half the size); use mixed_precision='bf16'; cut rows "
            f"shorter{longest}; or switch gradient checkpointing on in the backbone. The last "
            f"checkpoint stands. ({error})"
        ) from error
