"""A budget of layers held on a stream, as a service holds it, on stored outputs.

Letters: M exits, B rows of the stream in their order, S settings.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from multiexit import policies
from multiexit.evaluation.judging import score
from multiexit.evaluation.outputs import Outputs, need_outputs
from multiexit.policies import CalibrationTable
from multiexit.policies.registry import policy_name
from multiexit_runner.server.budget import BudgetDial
from multiexit_runner.server.dial import Setting


@dataclass(frozen=True)
class Replay:
    """How a stream went.

    Args:
        setting_B: which setting each row had, int64: its place in `table.settings`, 0 the slowest.
        exit_B: where each row left, int64.
        scores: figures by name over all rows; `"score"` is the one to compare by.
        mean_layers: stages run per row.
    """

    setting_B: Tensor
    exit_B: Tensor
    scores: dict[str, float]
    mean_layers: float


def replay(outputs: Outputs, table: CalibrationTable, budget_layers: float) -> Replay:
    """Run the rows of a set in their order, as `multiexit serve --budget-layers` would.

    A row takes the setting whose mean layers, by the table, are nearest to an aim a. Then c, the
    layers that it was run through, moves the aim:

        a ← clip(a + 0.02·(budget − c), fastest − r, slowest + r),    a_0 = budget, r their distance

    So a threshold follows the confidences that come, without labels, until the layers are those of
    the budget: while a isn't clipped below, the mean over B rows is at most
    budget + (a_0 − a_B)/(0.02·B). Each row leaves before the next one comes; a service's rows
    overlap.

    Args:
        outputs: from `multiexit.collect`, on rows in the order in which they come.
        table: from `multiexit.calibration_table`, on other rows; of a model for which `multiexit
            calibrate --table` was run, `model.calibration`.
        budget_layers: layers per row, on average.

    Raises:
        ValueError: no table, one that doesn't fit the outputs, a budget that no mixture of its
            settings has, or no rows.

    Example:
        Rows that leave late under the setting in force make it faster:

        >>> import torch, multiexit as mx
        >>> first_BC = torch.tensor([[0.0, 0], [0, 1], [2, 0], [0, 3]])
        >>> last_BC = torch.tensor([[4.0, 0], [0, 4], [4, 0], [0, 4]])
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> outputs = mx.Outputs(torch.stack([first_BC, last_BC]), torch.tensor([0, 1, 0, 1]), cost)
        >>> table = mx.calibration_table(outputs, mx.MaxProb)
        >>> late = outputs.take(torch.zeros(900, dtype=torch.long))
        >>> went = mx.replay(late, table, budget_layers=1.5)
        >>> went.setting_B.unique().tolist(), round(went.mean_layers, 2)
        ([2, 3, 4], 1.52)

    Reference: Robbins & Monro, "A Stochastic Approximation Method", 1951.
    """
    need_outputs(outputs)
    if not isinstance(table, CalibrationTable):
        raise ValueError(
            f"table is what calibration_table(outputs, policy) gives; got {type(table).__name__}"
        )
    B = len(outputs.labels_B)
    dial = BudgetDial([_turned(outputs, each) for each in table.settings], budget_layers)
    exit_SB = torch.stack([outputs.answers(each.policy)[0] for each in table.settings])
    setting_B = torch.empty(B, dtype=torch.long)
    for row, exit_S in enumerate(exit_SB.T.tolist()):
        entry = dial.enter(1)
        setting_B[row] = entry.place
        dial.left(entry, outputs.cost.layers_M[exit_S[entry.place]])
    answer_BC = torch.empty_like(outputs.logits_MBC[0])
    for place in setting_B.unique().tolist():
        rows_B = setting_B == place
        answer_BC[rows_B] = outputs.take(rows_B).answers(table.settings[place].policy)[1]
    exit_B = exit_SB[setting_B, torch.arange(B)]
    layers_M = torch.tensor(outputs.cost.layers_M, dtype=torch.float64)
    return Replay(setting_B, exit_B, score(outputs, answer_BC), float(layers_M[exit_B].mean()))


def _turned(outputs: Outputs, setting: policies.Setting) -> Setting:
    """A setting of the table as the service's dial has it."""
    M = outputs.num_exits
    if len(setting.shares_M) != M:
        raise ValueError(
            f"the table is of a model of {len(setting.shares_M)} exits, these outputs have {M}: "
            "make it from outputs of the same model"
        )
    policies.check(setting.policy, M, outputs.num_classes, outputs.problem)
    return Setting(
        policy=setting.policy,
        said=policy_name(setting.policy),
        score=setting.score,
        loss_bound=setting.loss_bound,
        mean_layers=setting.mean_layers,
        shares_M=setting.shares_M,
    )
