"""Run the model once over a data set, then judge exits and policies from what it said.

Letters: M exits, N rows of the set, C classes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import Dataset, Subset

from multiexit import metrics, policies
from multiexit.cost import paired_times
from multiexit.data import hub
from multiexit.data.batches import by_index, in_order, loader, move, unpack
from multiexit.data.columns import Columns
from multiexit.data.images import on_device
from multiexit.data.keys import row_keys
from multiexit.engine import Engine
from multiexit.losses import check_labels
from multiexit.metrics import Metric
from multiexit.model import MultiExitModel
from multiexit.modes import quiet
from multiexit.outputs import Outputs
from multiexit.policies import ExitPolicy, check
from multiexit.processes import processes
from multiexit.walk import num_rows

SAME = 0.01
"""Share of rows that may equal ones calibrated on: halves of GLUE's dev sets share up to 0.4 %."""


@dataclass(frozen=True)
class Row:
    """What a policy achieves on a set: one row of a sweep.

    Args:
        policy: the policy.
        score: the metric's main figure; `scores` holds all of them by name.
        mean_layers: stages run per input row, averaged.
        speedup_layers: stages of the full network ÷ mean_layers.
        speedup_macs: MACs of the full network with its last head alone ÷ mean MACs with all heads
            that were asked. Below 1 when heads cost and nobody leaves.
        shares_M: which share of the rows left at each exit.
        speedup_time: seconds of the full network ÷ seconds with the policy, where measured.
    """

    policy: ExitPolicy
    score: float
    scores: dict[str, float]
    mean_layers: float
    speedup_layers: float
    speedup_macs: float
    shares_M: list[float] = field(repr=False)
    speedup_time: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as plain data."""
        return {**asdict(self), "policy": policies.to_json(self.policy)}


@torch.inference_mode()
def collect(
    model: MultiExitModel,
    data: Dataset[Any] | Iterable[Any],
    metric: str | Metric | None = None,
    batch_size: int = 128,
    keys: bool = True,
    spread: bool = False,
) -> Outputs:
    """Run every exit on every row, once.

    Args:
        model: is put into evaluation mode for the while.
        data: a data set (read in order of length where it tells lengths; rows come back in the
            set's order), or an iterable of batches: `(inputs, labels)` or a dict with `"labels"`.
        metric: a name in `multiexit.metrics.METRICS`, or a function of answers and labels; None is
            accuracy, or Pearson and Spearman for regression.
        batch_size: rows per batch, where `data` doesn't say.
        keys: whether rows get keys to be known again by, as a policy's certificate needs them.
        spread: share a data set's batches among the processes of this run, all of which must call
            this, and get the outputs on the whole set. An iterable is read by each of them.

    Raises:
        ValueError: no rows, a metric that doesn't fit, labels outside the classes, or NaN or
            infinite logits (named exit and row).
    """
    metric = metrics.fitting(metric, model.num_classes)
    hub.check_names(data, model.labels, "the data set")
    device = next(model.parameters()).device
    here = (processes().process_index, processes().num_processes) if spread else (0, 1)
    batches, order = loader(on_device(data, device), batch_size, *here)
    known = Columns(model.backbone.start)
    said, row = [], None
    with quiet(model):
        for batch in batches:
            args, inputs, labels_B = unpack(known(batch))
            row = row or _image_row(model, move(args, device))
            found = model.run(move(args, device), move(inputs, device))
            sure_MB = None if found.certainty_MB is None else found.certainty_MB.float().cpu()
            keys_B = row_keys(args, inputs, len(labels_B)) if keys else None
            said.append((policies.wide(found.logits_MBC).cpu(), labels_B.cpu(), sure_MB, keys_B))
    if spread and order is not None:
        said, order = gather_object(said), gather_object(order)
    if not said:
        raise ValueError("no rows to evaluate: the data set is empty")
    logits, labels, certainty, known = zip(*said, strict=True)
    outputs = Outputs(
        torch.cat(logits, 1),
        torch.cat(labels),
        model.cost(row),
        metric,
        None if certainty[0] is None else torch.cat(certainty, 1),
        None if any(keys_B is None for keys_B in known) else torch.cat(known),
    )
    if order is not None:
        place = {row: index for index, row in enumerate(order)}  # of rows read twice, one
        outputs = outputs.take(torch.tensor([place[row] for row in range(len(place))]))
    _check_finite(outputs.logits_MBC)
    check_labels(outputs.labels_B, model.num_classes, "the data set")
    if model.num_classes > 1:  # booleans and short integers too
        return replace(outputs, labels_B=outputs.labels_B.long())
    return outputs


def _image_row(model: MultiExitModel, args: Sequence[Any]) -> dict[str, Tensor] | None:
    """A batch's first image, by whose size MACs are counted; None if it holds none."""
    names = list(model.backbone.example_inputs())
    alone = len(args) == len(names) == 1 and isinstance(args[0], Tensor) and args[0].ndim == 4
    return {names[0]: args[0][:1]} if alone else None


def score(logits_BC: Tensor, labels_B: Tensor, metric: str | Metric) -> dict[str, float]:
    """A metric of logits [N, C] against labels [N]; `"score"` is the one to compare by."""
    C = logits_BC.shape[1]
    predicted_B = logits_BC[:, 0] if C == 1 else logits_BC.argmax(-1)
    return metrics.measure(metric, predicted_B.numpy(), labels_B.numpy(), C)


def exit_scores(outputs: Outputs) -> list[dict[str, float]]:
    """Each exit's scores, as if everyone left there."""
    return [score(logits_BC, outputs.labels_B, outputs.metric) for logits_BC in outputs.logits_MBC]


def judge(outputs: Outputs, policy: ExitPolicy) -> Row:
    """What one policy achieves on the collected outputs.

    Raises:
        ValueError: a policy with a certificate, where over 1 % of the rows (`SAME`) are among
            those that it was calibrated on.
    """
    check(policy, outputs.num_exits, outputs.logits_MBC.shape[2])
    _check_unseen(outputs, policy)
    exit_B, answer_BC = policies.answers(policy, outputs.logits_MBC, outputs.certainty_MB)
    scores = score(answer_BC, outputs.labels_B, outputs.metric)
    shares_M = torch.bincount(exit_B, minlength=outputs.num_exits).double() / len(exit_B)
    cost = outputs.cost
    mean_layers = float(shares_M @ torch.tensor(cost.layers_M, dtype=torch.float64))
    mean_macs = float(shares_M @ torch.tensor(cost.macs_M, dtype=torch.float64))
    return Row(
        policy=policy,
        score=scores["score"],
        scores=scores,
        mean_layers=mean_layers,
        speedup_layers=cost.layers_M[-1] / mean_layers,
        speedup_macs=cost.full_macs / mean_macs,
        shares_M=shares_M.tolist(),
    )


def sweep(outputs: Outputs, policies: Iterable[ExitPolicy]) -> list[Row]:
    """What each policy achieves; the model is not run again.

    Raises:
        ValueError: one policy or its class in place of a list, and as `judge`.
    """
    if isinstance(policies, type | ExitPolicy):
        raise ValueError("sweep takes a list of policies, such as [MaxProb(0.5), MaxProb(0.9)]")
    policies = list(policies)
    for policy in policies:
        check(policy, outputs.num_exits, outputs.logits_MBC.shape[2])
    return [judge(outputs, policy) for policy in policies]


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
        model, policy, data: as elsewhere.
        batch_size: rows per batch, where `data` doesn't say.
        rows: about how many rows to time, from the start of `data`.
        repeats: readings of each.
    """
    device = next(model.parameters()).device
    few: Any = in_order(data, batch_size)
    if by_index(data):
        some = Subset(data, range(min(rows, len(data))))  # type: ignore[arg-type]
        few, _ = loader(some, batch_size)
    known = Columns(model.backbone.start)
    timed: list[tuple[Any, Any]] = []
    for batch in few:
        args, inputs, _ = unpack(known(batch))
        timed.append((move(args, device), move(inputs, device)))
        if sum(num_rows(*inputs) for inputs in timed) >= rows:
            break
    with quiet(model):
        engine = Engine(model, policy)
        ours, theirs = paired_times(
            lambda: [engine.predict(*args, **inputs) for args, inputs in timed],
            lambda: [engine.model.full(*args, **inputs) for args, inputs in timed],
            repeats,
        )
    return theirs / ours


def _check_unseen(outputs: Outputs, policy: ExitPolicy) -> None:
    if policy.certificate is None:
        return
    seen, rows = int(outputs.seen(policy.certificate).sum()), len(outputs.labels_B)
    if seen > SAME * rows:
        raise ValueError(
            f"{seen} of these {rows} rows are among those that {policy} was calibrated on, and its "
            "bound is on new rows: judge it on outputs.without(policy.certificate)"
        )


def _check_finite(logits_MBC: Tensor) -> None:
    bad = (~torch.isfinite(logits_MBC)).any(-1).nonzero()
    if len(bad):
        m, row = bad[0].tolist()
        raise ValueError(
            f"exit {m} gave NaN or infinite logits for row {row}: {logits_MBC[m, row].tolist()}"
        )
