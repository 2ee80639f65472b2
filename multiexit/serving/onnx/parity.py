"""Whether exported graphs say what the model says.

Letters: M exits, B batch rows, C classes.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multiexit import policies, problems
from multiexit.data import padding
from multiexit.model.finite import check_finite
from multiexit.model.model import MultiExitModel
from multiexit.model.passes import Pass
from multiexit.policies import ExitPolicy
from multiexit.problems import are_vectors
from multiexit_runner import Runner
from multiexit_runner.inputs import MASK

ALONE = 256
"""Rows that are also run one at a time."""

TOLERANCE = 1e-4
"""How far logits may be apart, times the largest of them (at least 1)."""


SAME_COSINE = 0.99
"""Vectors whose cosine is above this are the same answer."""


class Parity(NamedTuple):
    """A comparison of exported graphs with the model.

    Args:
        rows: how many were compared.
        largest_difference: between any two logits, of all exits.
        same_class: share of the exits, over all rows, that give the same answer: the class, of
            several labels all of them, or a vector whose cosine to the model's is above 0.99.
        same_exit: share of the rows that leave at the same exit.
        same_answer: share of the rows whose answers, where they leave, are the same.
        same_answer_alone: the same of the first 256 rows, each run as a batch of its own.
        largest_difference_alone: between any two logits of such a row, alone and in its batch.

    Of numbers there are no classes, and all shares of them are 1.
    """

    rows: int
    largest_difference: float
    same_class: float
    same_exit: float
    same_answer: float
    same_answer_alone: float
    largest_difference_alone: float


def compare(
    model: MultiExitModel,
    policy: ExitPolicy,
    runner: Runner,
    batches: Iterable[Mapping[str, Tensor]],
    exact: bool,
) -> Parity:
    """Run batches through the model and through its graphs.

    Args:
        model, policy: what was exported.
        runner: the graphs.
        batches: inputs by name.
        exact: refuse what is not equal up to rounding.

    Raises:
        ValueError: NaN or infinite logits; no rows; with `exact`, logits or exits that differ.
    """
    same = partial(_same_answers, problem=model.problem)
    differences, same_class, same_exit, same_answer = [], [], [], []
    same_alone, difference_alone, remaining = [], 0.0, ALONE
    for batch in batches:
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in batch.items()}
        with torch.no_grad():
            outputs = model.run((), batch)
        asked_BT = outputs.asked_BT
        model_BC, model_exit_B = model.predict(policy, **batch)
        graph_MBC = torch.from_numpy(runner.forward(**arrays))
        graph_BC, graph_exit_B = map(torch.from_numpy, runner.predict(**arrays))
        for exit, logits_BC in enumerate(graph_MBC):
            check_finite(exit, logits_BC, where=" in its graph")
        difference = float((outputs.logits_MBC - graph_MBC).abs().max())
        count = min(remaining, len(model_exit_B))
        if count:
            alone_MBC, alone_BC = _single_row_answers(runner, arrays, count)
            difference_alone = max(
                difference_alone, float((alone_MBC - graph_MBC[:, :count]).abs().max())
            )
            some_BT = None if asked_BT is None else asked_BT[:count]
            same_alone.append(same(model_BC[:count], alone_BC, asked_BT=some_BT))
            remaining -= count
        if exact:
            allowed = TOLERANCE * max(1.0, float(outputs.logits_MBC.abs().max()))
            close_B = (model_BC - graph_BC).abs().flatten(1).amax(1) <= allowed
            near_B = _near_threshold(policy, outputs, difference, model.problem)
            agree_B = ((model_exit_B == graph_exit_B) & close_B) | near_B
            worst = max(difference, difference_alone)
            if worst > allowed or not agree_B.all():
                shapes = {name: list(tensor.shape) for name, tensor in batch.items()}
                raise ValueError(
                    "the exported graphs don't say what the model says: logits differ by up to "
                    f"{worst:.2g} ({allowed:.2g} is allowed), and {int((~agree_B).sum())} of "
                    f"{len(agree_B)} rows leave elsewhere or answer otherwise, on inputs of shapes "
                    f"{shapes}{_padding_read(model, batch, allowed)}"
                )
        differences.append(difference)
        same_class.append(same(outputs.logits_MBC, graph_MBC, asked_BT=asked_BT).float().mean(0))
        same_exit.append(model_exit_B == graph_exit_B)
        same_answer.append(same(model_BC, graph_BC, asked_BT=asked_BT))
    if not differences:
        raise ValueError("no rows to compare the exported graphs on: the data set is empty")

    def share(same: list[Tensor]) -> float:
        return float(torch.cat(same).float().mean())

    return Parity(
        rows=sum(map(len, same_exit)),
        largest_difference=max(differences),
        same_class=share(same_class),
        same_exit=share(same_exit),
        same_answer=share(same_answer),
        same_answer_alone=share(same_alone),
        largest_difference_alone=difference_alone,
    )


def _padding_read(model: MultiExitModel, batch: Mapping[str, Tensor], allowed: float) -> str:
    """A clause for the message where it is the cause: a row answers otherwise without its padding.

    A runner cuts off the padding that all rows have, which changes nothing for other networks.
    """
    mask_BT = batch.get(MASK)
    if mask_BT is None or mask_BT.ndim != 2:
        return ""
    for row in range(len(mask_BT)):
        padded = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        both = padded, padding.trim(padded)
        with torch.no_grad():
            one_MBC, other_MBC = (model.run((), inputs).logits_MBC for inputs in both)
        if one_MBC.shape == other_MBC.shape and (one_MBC - other_MBC).abs().max() > allowed:
            return (
                "; this network reads its padding, which a runner cuts off where all rows have it: "
                "wrap it at one length, input_shape=(T,)"
            )
    return ""


def _single_row_answers(
    runner: Runner, arrays: Mapping[str, Any], rows: int
) -> tuple[Tensor, Tensor]:
    """The first rows as batches of one: all exits' logits [M, B, C], and the answers [B, C]."""
    single = [{name: array[i : i + 1] for name, array in arrays.items()} for i in range(rows)]
    logits_MBC = torch.cat([torch.from_numpy(runner.forward(**row)) for row in single], 1)
    return logits_MBC, torch.cat([torch.from_numpy(runner.predict(**row)[0]) for row in single])


def _same_answers(
    one: Tensor, other: Tensor, problem: str, asked_BT: Tensor | None = None
) -> Tensor:
    """Whether outputs give the same answer to each row, bool […, B]; of numbers always."""
    if problem == "regression":
        return torch.ones(one.shape[:-1], dtype=torch.bool)
    if are_vectors(problem):
        return (one * other).sum(-1) > SAME_COSINE
    answers = problems.answer(one, problem), problems.answer(other, problem)
    return problems.same(*answers, problem, asked_BT)


def _near_threshold(policy: ExitPolicy, outputs: Pass, noise: float, problem: str) -> Tensor:
    """Rows whose exit such a small change of the logits may move, bool [B]."""
    generator = torch.Generator().manual_seed(0)

    def nudged(values: Tensor) -> Tensor:
        size = 4 * noise + 1e-6
        return values + size * (2 * torch.rand(values.shape, generator=generator) - 1)

    def exits(logits_MBC: Tensor, certainty_MB: Tensor | None) -> Tensor:
        return policies.simulate(policy, logits_MBC, certainty_MB, problem, outputs.asked_BT)

    exit_B = exits(outputs.logits_MBC, outputs.certainty_MB)
    edge_B = torch.zeros_like(exit_B, dtype=torch.bool)
    for _ in range(8):
        certainty_MB = None if outputs.certainty_MB is None else nudged(outputs.certainty_MB)
        edge_B |= exits(nudged(outputs.logits_MBC), certainty_MB) != exit_B
    return edge_B
