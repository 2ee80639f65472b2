"""Tables of exits, costs and policies, for people to read.

Scores are kept in 0..1 and shown × 100. Exits are counted from 0.

Letters: M exits, S batch sizes.
"""

from collections.abc import Mapping, Sequence

from multiexit.evaluation.cells import (
    cost_cells,
    exit_cells,
    exit_rows,
    policy_cell,
    policy_cells,
    policy_rows,
)
from multiexit.evaluation.judging import Row
from multiexit.evaluation.metrics import label
from multiexit.evaluation.outputs import Outputs
from multiexit.model.cost import Cost
from multiexit.model.latency import Latency
from multiexit.policies import CalibrationTable
from multiexit.policies.registry import to_json

SMALL = 12  # up to so many exits the weights are written out as numbers


def table(rows: Sequence[Mapping[str, str]], markdown: bool = False) -> str:
    """Lay out rows of named cells, as aligned text or as Markdown; a name that a row lacks is –.

    Args:
        rows: cells by column name; columns come in the order in which names first occur.
        markdown: as a Markdown table.

    Raises:
        ValueError: no rows.

    Example:
        >>> import multiexit as mx
        >>> print(mx.report.table([{"exit": "0", "score": "61.5"}, {"exit": "1"}]))
        exit  score
        ----  -----
           0   61.5
           1      –
    """
    if not rows:
        raise ValueError("no rows to put in a table")
    padded = []
    for name in dict.fromkeys(name for row in rows for name in row):
        cells = [name, *(row.get(name, "–") for row in rows)]
        cells = [cell.replace("|", "\\|") if markdown else cell for cell in cells]
        width = max(3, *map(len, cells))
        number = all(cell[:1].isdigit() or cell[:1] in "-–" for cell in cells[1:])
        cells.insert(1, "-" * (width - 1) + ":" if number and markdown else "-" * width)
        padded.append([cell.rjust(width) if number else cell.ljust(width) for cell in cells])
    if markdown:
        return "\n".join(f"| {' | '.join(line)} |" for line in zip(*padded, strict=True))
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def exit_table(outputs: Outputs, markdown: bool = False) -> str:
    """A table with a row per exit: its cost, its scores, and how often it agrees with the last.

    Layers, MACs and parameters are cumulated, all heads so far included (`multiexit.Cost`).

    Args:
        outputs: from `multiexit.collect`.
        markdown: as a Markdown table.

    Raises:
        ValueError: what the metric raises.

    Example:
        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[1.0, 0], [2, 0]], [[0, 2], [2, 0]]])
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> print(mx.report.exit_table(mx.Outputs(logits_MBC, torch.tensor([1, 0]), cost)))
        exit  layers  MACs  parameters  accuracy (%)  agreement with the last exit (%)
        ----  ------  ----  ----------  ------------  --------------------------------
           0       1    10           5         50.00                             50.00
           1       2    20          10        100.00                            100.00
    """
    return table(exit_cells(exit_rows(outputs)), markdown)


def cost_table(cost: Cost) -> str:
    """A table with a row per exit: layers, MACs and parameters, cumulated, all heads included.

    Args:
        cost: from `MultiExitModel.cost`.

    Example:
        >>> import multiexit as mx
        >>> print(mx.report.cost_table(mx.Cost((1, 2), (1500, 4_000_000), (5, 10), 18)))
        exit  layers   MACs  parameters
        ----  ------  -----  ----------
           0       1  1.5 k           5
           1       2  4.0 M          10
    """
    columns = zip(cost.layers_M, cost.macs_M, cost.params_M, strict=True)
    return table([cost_cells(m, *row) for m, row in enumerate(columns)])


def latency_table(latency: Latency) -> str:
    """A table of milliseconds until each exit's answer, and without early exits, by batch size.

    Args:
        latency: from `multiexit.profile`.

    Example:
        >>> import multiexit as mx
        >>> stages, check = ((2.0, 9.0), (2.0, 9.0)), ((0.5, 0.5), (0.5, 0.5))
        >>> table = mx.Latency("a CPU", (1, 8), (1.0, 1.0), stages, check, (0.1, 0.1), (5.5, 19.5))
        >>> print(mx.report.latency_table(table))
        exit            batch of 1, ms  batch of 8, ms
        --------------  --------------  --------------
        0                          3.5            10.5
        1                            6              20
        no early exits             5.5            19.5
    """
    sizes = latency.batch_sizes
    ms_SM = [[*latency.until_exit_ms(size), latency.at(latency.full_ms, size)] for size in sizes]
    heads = [f"batch of {size}, ms" for size in sizes]
    names = [*map(str, range(len(latency.stages_ms))), "no early exits"]
    return table(
        [
            {"exit": name, **dict(zip(heads, (f"{ms:.3g}" for ms in ms_S), strict=True))}
            for name, ms_S in zip(names, zip(*ms_SM, strict=True), strict=True)
        ]
    )


def policy_table(rows: Sequence[Row], markdown: bool = False) -> str:
    """A table with a row per policy: scores, mean layers, speed-ups by layers, MACs, measured time.

    Args:
        rows: from `multiexit.sweep`.
        markdown: as a Markdown table.

    Raises:
        ValueError: no rows.

    Example:
        >>> import multiexit as mx
        >>> scores = {"score": 0.9, "accuracy": 0.9}
        >>> row = mx.Row(mx.MaxProb(0.9), 0.9, scores, 1.5, 1.33, 1.2, [0.5, 0.5])
        >>> print(mx.report.policy_table([row]))
        policy        accuracy (%)  mean layers  speed-up, layers  speed-up, MACs
        ------------  ------------  -----------  ----------------  --------------
        max-prob=0.9         90.00         1.50             1.33×           1.20×
    """
    return table(policy_cells(policy_rows(rows)), markdown)


def calibration_table(calibration: CalibrationTable) -> str:
    """A table with a row per setting: score, loss bound, mean layers, speed-ups.

    Args:
        calibration: from `multiexit.calibration_table`.

    Example:
        >>> import multiexit as mx
        >>> from multiexit.policies import Setting
        >>> setting = Setting(mx.MaxProb(0.9), 0.84, 0.015, 1.5, 1.33, 1.2, (0.5, 0.5))
        >>> table = mx.CalibrationTable("accuracy", 0.85, 400, "accuracy", 0.9, (setting,))
        >>> for line in mx.report.calibration_table(table).splitlines():
        ...     print(line[:78])
        policy        accuracy (%)  accuracy lost ≤ (%)  mean layers  speed-up, layers
        ------------  ------------  -------------------  -----------  ----------------
        max-prob=0.9         84.00                 1.50         1.50             1.33×
    """
    return table(
        [
            {
                "policy": policy_cell(to_json(each.policy), each.shares_M),
                label(calibration.metric): f"{100 * each.score:.2f}",
                **(
                    {}
                    if each.loss_bound is None
                    else {f"{calibration.loss} lost ≤ (%)": f"{100 * each.loss_bound:.2f}"}
                ),
                "mean layers": f"{each.mean_layers:.2f}",
                "speed-up, layers": f"{each.speedup_layers:.2f}×",
                "speed-up, MACs": f"{each.speedup_macs:.2f}×",
            }
            for each in calibration.settings
        ]
    )
