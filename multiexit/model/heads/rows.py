"""Whether heads of the user's own answer each row by itself.

Letters: B batch rows, T tokens.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from multiexit import randomness
from multiexit.backbones.running import random_rows
from multiexit.backbones.verify import check_same_rows
from multiexit.model.heads.base import Memory, Shape, ask
from multiexit.runtime import buffers_kept, evaluating

SIZE = 8  # of what has none fixed, such as the number of tokens


def check_rows(heads: Sequence[nn.Module], shapes: Sequence[Shape]) -> None:
    """Refuse heads whose logits of a row depend on the other rows of its batch, in evaluation.

    Heads that don't run on features of these sizes, or have no values yet, aren't looked at.

    Args:
        heads: one for each exit, in order.
        shapes: of their features, without the batch.

    Raises:
        ValueError: names the first exit where it is so.
    """
    with ExitStack() as kept, torch.no_grad():
        kept.enter_context(randomness.seeded(0))
        kept.enter_context(evaluating(*heads))
        for head in heads:
            kept.enter_context(buffers_kept(head))
        try:
            features = [
                random_rows(torch.zeros(1, *(size or SIZE for size in shape)), head, 2)
                for head, shape in zip(heads, shapes, strict=True)
            ]
            together, *alone = (
                _logits(heads, shapes, [feature[rows] for feature in features])
                for rows in (slice(2), slice(1), slice(1, 2))
            )
            if any(logits.is_meta or not logits.ndim for logits in together):
                return
        except Exception:  # whatever a head says to a size that it isn't made for
            return
    for exit, (both, *each) in enumerate(zip(together, *alone, strict=True)):
        check_same_rows(f"the head of exit {exit}: a row's answer", both, each)


def _logits(
    heads: Sequence[nn.Module], shapes: Sequence[Shape], features: Sequence[Tensor]
) -> list[Tensor]:
    logits: list[Tensor] = []
    memory: Memory = {}
    for head, shape, feature in zip(heads, shapes, features, strict=True):
        tokens = len(shape) == 2 and shape[0] is None
        valid_BT = feature.new_ones(feature.shape[:2], dtype=torch.bool) if tokens else None
        logits_BC, memory = ask(head, feature.clone(), valid_BT, memory)
        logits.append(logits_BC)
    return logits
