"""What exported graphs say about a data set, to judge and calibrate them by."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import Dataset

from multiexit.data.batches import has_labels, in_order, unpack, unpack_inputs
from multiexit.evaluation import metrics
from multiexit.evaluation.metrics import Metric
from multiexit.evaluation.outputs import Outputs
from multiexit.losses.labels import check_label_shape
from multiexit.model.model import MultiExitModel


def collect_exported(
    runner: Any,
    model: MultiExitModel,
    data: Dataset[Any] | Iterable[Any],
    metric: str | Metric | None = None,
    notes: Callable[[str], None] = lambda note: None,
) -> Outputs:
    """Run every graph of an export on every row, once: `multiexit.collect` of what was exported.

    Args:
        runner: `multiexit_runner.Runner` of the export.
        model: that was exported; what leaving at each exit costs is the model's.
        data: a data set, or an iterable of batches, as for `multiexit.collect`; of one answer a
            row.
        metric: as for `multiexit.collect`.
        notes: is told how far it is, such as `print`.

    Raises:
        ValueError: no rows, labels outside the classes, a metric that doesn't fit, or inputs that
            the graphs weren't exported for.
    """
    metric = metrics.fitting(metric, model.num_classes, model.problem, model.labels)
    logits, labels, rows = [], [], 0
    for batch in in_order(data, 32):
        args, inputs = unpack_inputs(batch)
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        logits_MBC = torch.from_numpy(runner.forward(*(each.numpy() for each in args), **arrays))
        vectors = model.problem == "embedding" and not has_labels(batch)
        logits.append(logits_MBC)
        labels_B = logits_MBC[-1] if vectors else unpack(batch)[2]
        where = f"batch {len(labels)} (counted from 0)"
        check_label_shape(labels_B, logits_MBC.shape[1:], model.problem, where)
        labels.append(labels_B)
        rows += logits_MBC.shape[1]
        notes(f"{rows} rows are run on the exported graphs")
    if not rows:
        raise ValueError("no rows to run the exported graphs on: the data set is empty")
    return Outputs(
        torch.cat(logits, 1),
        torch.cat(labels),
        model.cost(),
        metric,
        problem=model.problem,
        names=model.labels,
    )
