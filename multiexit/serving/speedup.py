"""The gain of early exits on the clock."""

from collections.abc import Iterable
from typing import Any

from torch.utils.data import Dataset, Subset

from multiexit.data.batches import in_order, is_indexable, loader, move, unpack_inputs
from multiexit.data.columns import Columns
from multiexit.model.exit_loop import num_rows
from multiexit.model.model import MultiExitModel
from multiexit.policies import ExitPolicy
from multiexit.runtime import evaluating
from multiexit.serving.engine import Engine
from multiexit.serving.timing import median_seconds


def measured_speedup(
    model: MultiExitModel,
    policy: ExitPolicy,
    data: Dataset[Any] | Iterable[Any],
    batch_size: int = 1,
    rows: int = 256,
    repeats: int = 3,
) -> float:
    """Seconds of the full network with its last head alone ÷ seconds with exits, by an `Engine`.

    Both run the same batches through the network as the engine has it, in turn, after a warm-up;
    the medians are compared.

    Args:
        model: is put into evaluation mode for the while.
        policy: by which the engine stops rows.
        data: a data set, or an iterable of batches, with or without labels.
        batch_size: rows per batch, where `data` doesn't say.
        rows: how many rows to time, from the start of `data`; of batches, as many of them as hold
            that many rows.
        repeats: readings of each.

    Returns:
        A ratio; above 1 where exits save time.

    Raises:
        ValueError: a policy that doesn't fit the model, or what `Engine.predict` raises.

    Example:
        >>> import torch, multiexit as mx
        >>> from multiexit.serving import measured_speedup
        >>> backbone = mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)))
        >>> model = mx.MultiExitModel(backbone, num_classes=2)
        >>> batches = [(torch.rand(16, 4), torch.arange(16) % 2)]
        >>> measured_speedup(model, mx.FixedExit(0), batches, repeats=1) > 0
        True
    """
    device = next(model.parameters()).device
    batches: Any = in_order(data, batch_size)
    if is_indexable(data):
        first_rows = Subset(data, range(min(rows, len(data))))  # type: ignore[arg-type]
        batches, _ = loader(first_rows, batch_size)
    columns = Columns(model.backbone.start, model.own_inputs)
    timed_inputs: list[tuple[Any, Any]] = []
    for batch in batches:
        args, inputs = unpack_inputs(columns(batch))
        timed_inputs.append((move(args, device), move(inputs, device)))
        if sum(num_rows(*inputs) for inputs in timed_inputs) >= rows:
            break
    with evaluating(model):
        engine = Engine(model, policy)

        def with_exits() -> None:
            for args, inputs in timed_inputs:
                engine.predict(*args, **inputs)

        def in_full() -> None:
            for args, inputs in timed_inputs:
                engine.model_for(num_rows(args, inputs)).full(*args, **inputs)

        exits_seconds, full_seconds = median_seconds([with_exits, in_full], repeats)
    return full_seconds / exits_seconds
