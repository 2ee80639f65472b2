"""The outputs of a model on a data set, and parts of them.

Letters: M exits, B rows of the set, T tokens, C classes.
"""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import Dataset

from multiexit import policies, problems
from multiexit.arguments import check_share
from multiexit.data import hub
from multiexit.data.batches import has_labels, loader, move, unpack, unpack_inputs
from multiexit.data.columns import Columns
from multiexit.data.images import on_device
from multiexit.data.padding import filled_up
from multiexit.data.row_keys import row_keys
from multiexit.evaluation import metrics
from multiexit.evaluation.metrics import Metric
from multiexit.evaluation.well_formed import check_outputs
from multiexit.losses.labels import IGNORED, check_label_shape
from multiexit.model.cost import Cost
from multiexit.model.finite import check_finite
from multiexit.model.model import MultiExitModel
from multiexit.policies import Certificate, ExitPolicy
from multiexit.runtime import evaluating, processes, wide
from multiexit_runner.user_line import user_level


@dataclass(frozen=True)
class Outputs:
    """Everything a model said about a data set.

    Args:
        logits_MBC: all exits' logits on the CPU, B all rows of the set in its order; float32, of a
            float64 model float64. Of tokens they are [M, B, T, C], T those of the longest row.
        labels_B: as the model's problem has them (`multiexit.losses.check_labels`): int64 classes
            [B], floats for regression, [B] or [B, C], for several labels [B, C], and of tokens
            [B, T]. Of an embedding vectors [B, C]: the last exit's, where the rows had none of
            their own.
        cost: what leaving at each exit costs.
        metric: a name in `multiexit.metrics.METRICS`, or a function.
        certainty_MB: how sure each exit is of being right, in 0..1, of models that learn to exit.
        keys_B: a 64-bit key of each row's inputs, by which rows are known again; None where there
            are none.
        problem: the model's; None is classification, or with one output regression.
        asked_BT: of tokens, which are asked for: where a row leaves depends on these alone, and
            they are scored where their label isn't −100. None is all.
        names: the classes' names, for metrics that read them; or None.
        temperature_M: what the model divided each exit's logits by; None where that isn't known.

    Raises:
        ValueError: what doesn't go together (`multiexit.evaluation.well_formed.check_outputs`).

    Example:
        >>> import torch, multiexit as mx
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> outputs = mx.Outputs(torch.zeros(2, 10, 3), torch.zeros(10, dtype=torch.long), cost)
        >>> to_calibrate, to_judge = outputs.split(0.3)
        >>> outputs.num_exits, len(to_calibrate.labels_B), len(to_judge.labels_B)
        (2, 3, 7)
    """

    logits_MBC: Tensor
    labels_B: Tensor
    cost: Cost
    metric: str | Metric = "accuracy"
    certainty_MB: Tensor | None = None
    keys_B: Tensor | None = None
    problem: str | None = None
    asked_BT: Tensor | None = None
    names: list[Any] | None = None
    temperature_M: Tensor | None = None

    def __post_init__(self) -> None:
        check_outputs(
            self.logits_MBC,
            self.labels_B,
            self.cost,
            self.certainty_MB,
            self.keys_B,
            self.problem,
            self.asked_BT,
        )
        if problems.resolve(self.problem, self.num_classes).endswith("classification"):
            # Short integers too, and booleans of two classes.
            object.__setattr__(self, "labels_B", self.labels_B.long())

    @property
    def num_exits(self) -> int:
        """M."""
        return len(self.logits_MBC)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.logits_MBC.shape[-1]

    @property
    def scored_labels(self) -> Tensor:
        """The labels that answers are scored by: those of tokens that aren't asked for are −100."""
        if self.asked_BT is None:
            return self.labels_B
        return self.labels_B.masked_fill(~self.asked_BT, IGNORED)

    def answers(self, policy: ExitPolicy) -> tuple[Tensor, Tensor]:
        """Find where each row leaves under a policy, int64 [B], and what it answers, [B, C]."""
        return policies.answers(
            policy, self.logits_MBC, self.certainty_MB, self.problem, self.asked_BT
        )

    def shares(self, policy: ExitPolicy) -> Tensor:
        """The share of the rows that leaves at each exit under a policy, float64 [M].

        Raises:
            ValueError: there are no rows.
        """
        need_outputs(self)
        exit_B, _ = self.answers(policy)
        return exit_shares(exit_B, self.num_exits)

    def take(self, rows: Tensor) -> "Outputs":
        """Take some of the rows.

        Args:
            rows: their numbers, or a bool mask [B].
        """
        return replace(
            self,
            logits_MBC=self.logits_MBC[:, rows],
            labels_B=self.labels_B[rows],
            certainty_MB=None if self.certainty_MB is None else self.certainty_MB[:, rows],
            keys_B=None if self.keys_B is None else self.keys_B[rows],
            asked_BT=None if self.asked_BT is None else self.asked_BT[rows],
        )

    def split(self, share: float, seed: int = 0) -> "tuple[Outputs, Outputs]":
        """Split off a random share of the rows, rounded down, from the rest.

        Drawn plainly, not by class, as bounds on the risk need it.

        Args:
            share: in (0, 1).
            seed: of the draw.

        Returns:
            The share, and the rest, each in the set's order.

        Raises:
            ValueError: a share that leaves either part empty.
        """
        first = rows_in_share(len(self.labels_B), share)
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.labels_B), generator=generator)
        return self.take(order[:first].sort().values), self.take(order[first:].sort().values)

    def seen(self, certificate: Certificate) -> Tensor:
        """Say which rows a policy was calibrated on, bool [B]; none where keys are missing."""
        if self.keys_B is None:
            return torch.zeros(len(self.labels_B), dtype=torch.bool)
        return certificate.seen(self.keys_B)

    def without(self, certificate: Certificate) -> "Outputs":
        """Take the rows that a policy was not calibrated on.

        Raises:
            ValueError: no row is left.
        """
        seen_B = self.seen(certificate)
        if seen_B.all():
            raise ValueError(
                f"all {len(seen_B)} rows are among the {certificate.rows} that the policy was "
                "calibrated on: judge it on others"
            )
        return self.take(~seen_B)


def exit_shares(exit_B: Tensor, num_exits: int) -> Tensor:
    """The share of the rows that left at each exit, float64 [M], from where each left, [B]."""
    return torch.bincount(exit_B, minlength=num_exits).double() / len(exit_B)


def rows_in_share(rows: int, share: float) -> int:
    """The number of rows in a share, rounded down; ValueError where either part is empty."""
    check_share("share", share, "(0, 1)")
    first = int(rows * share + 1e-9)
    if not 0 < first < rows:
        raise ValueError(f"a share of {share} of {rows} rows leaves one of the two parts empty")
    return first


def need_outputs(outputs: object) -> None:
    """Refuse what isn't `Outputs`, such as the model itself, and those of no rows.

    Raises:
        ValueError: with what was given.
    """
    if not isinstance(outputs, Outputs):
        raise ValueError(
            f"outputs are what collect(model, data) gives; got {type(outputs).__name__}"
        )
    if not len(outputs.labels_B):
        raise ValueError("no rows: these outputs are empty")


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
            Rows of an embedding need no labels: exits are then compared with the last one.
        metric: a name in `multiexit.metrics.METRICS`, or a function of answers and labels; None is
            that of the model's training, where `--metric` named one, else the first that suits:
            accuracy, Pearson and Spearman for regression, cosine for vectors.
        batch_size: rows per batch, where `data` doesn't say.
        keys: whether rows get keys to be known again by, as a policy's certificate needs them.
        spread: share a data set's batches among the processes of this run, all of which must call
            this, and get the outputs on the whole set. An iterable is read by each of them.

    Returns:
        The outputs on the whole set, on the CPU.

    Raises:
        ValueError: no rows, a metric that doesn't fit, a batch with another number of labels than
            rows, labels outside the classes, class names in another order than the model's, or NaN
            or infinite logits (named exit and row).

    Example:
        >>> import torch, multiexit as mx
        >>> backbone = mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)))
        >>> model = mx.MultiExitModel(backbone, num_classes=3)
        >>> outputs = mx.collect(model, [(torch.rand(5, 4), torch.tensor([0, 1, 2, 0, 1]))])
        >>> outputs.logits_MBC.shape, outputs.cost.layers_M
        (torch.Size([2, 5, 3]), (1, 2))
    """
    metric = model.preprocessing.get("metric") if metric is None else metric
    metric = metrics.fitting(metric, model.num_classes, model.problem, model.labels)
    hub.check_names(data, model.labels, "the data set")
    device = next(model.parameters()).device
    process = (processes().process_index, processes().num_processes) if spread else (0, 1)
    batches, order = loader(on_device(data, device), batch_size, *process)
    columns = Columns(model.backbone.start, model.own_inputs)
    parts, image_row = [], None
    with evaluating(model):
        for number, batch in enumerate(batches):
            args, inputs, labels_B = _unpacked(columns(batch), model)
            image_row = image_row or _image_row(model, move(args, device))
            seen = model.run(move(args, device), move(inputs, device))
            sure_MB = None if seen.certainty_MB is None else seen.certainty_MB.float().cpu()
            asked_BT = None if seen.asked_BT is None else seen.asked_BT.cpu()
            logits_MBC = wide(seen.logits_MBC).cpu()
            labels_B = logits_MBC[-1] if labels_B is None else labels_B.cpu()
            where = f"batch {number} (counted from 0)"
            check_label_shape(labels_B, logits_MBC.shape[1:], model.problem, where)
            read = {name: x for name, x in inputs.items() if name not in model.own_inputs}
            keys_B = row_keys(args, read, len(labels_B)) if keys else None
            parts.append((logits_MBC, labels_B, sure_MB, keys_B, asked_BT))
    if spread and order is not None:
        parts, order = gather_object(parts), gather_object(order)
    if not sum(len(labels_B) for _, labels_B, *_ in parts):
        raise ValueError("no rows to evaluate: the data set is empty")
    logits, labels, certainty, key_parts, asked = zip(*parts, strict=True)
    if model.own_inputs:
        tokens = max(part.shape[1] for part in asked)
        logits = [filled_up(part, 2, tokens, 0.0) for part in logits]
        labels = [filled_up(part, 1, tokens, IGNORED) for part in labels]
        asked = [filled_up(part, 1, tokens, False) for part in asked]
    place = {row: index for index, row in enumerate(order or ())}  # of rows read twice, one
    rows = slice(None) if order is None else torch.tensor([place[row] for row in range(len(place))])
    logits_MBC = torch.cat(logits, 1)[:, rows]
    for exit, logits_BC in enumerate(logits_MBC):
        check_finite(exit, logits_BC)
    outputs = Outputs(
        logits_MBC,
        torch.cat(labels)[rows],
        model.cost(image_row),
        metric,
        None if certainty[0] is None else torch.cat(certainty, 1)[:, rows],
        None if any(keys_B is None for keys_B in key_parts) else torch.cat(key_parts)[rows],
        model.problem,
        None if asked[0] is None else torch.cat(asked)[rows],
        model.labels,
        model.temperature_M.detach().to("cpu", copy=True),
    )
    _warn_of_unlabelled(outputs)
    return outputs


def _warn_of_unlabelled(outputs: Outputs) -> None:
    """Warn where rows wait for tokens that nobody learned to answer, such as [SEP]."""
    if outputs.asked_BT is None:
        return
    unlabelled = float((outputs.labels_B[outputs.asked_BT] == IGNORED).double().mean())
    if unlabelled > 0:
        warnings.warn(
            f"{unlabelled:.0%} of the tokens that are asked for have no label (−100), and a row "
            "leaves when it is sure of these too: give an answer_mask [B, T] in each batch, 1 "
            "where a token is asked for, as multiexit.data.words.tokenise_words makes it",
            stacklevel=user_level(),
        )


def _unpacked(batch: Any, model: MultiExitModel) -> tuple[Any, Any, Tensor | None]:
    """A batch's positional and named inputs, and its labels; None where there may be none."""
    if model.problem == "embedding" and not has_labels(batch):
        return *unpack_inputs(batch), None
    return unpack(batch)


def _image_row(model: MultiExitModel, args: Sequence[Any]) -> dict[str, Tensor] | None:
    """A batch's first image, by whose size MACs are counted; None if it holds none."""
    names = list(model.backbone.example_inputs())
    alone = len(args) == len(names) == 1 and isinstance(args[0], Tensor) and args[0].ndim == 4
    return {names[0]: args[0][:1]} if alone else None
