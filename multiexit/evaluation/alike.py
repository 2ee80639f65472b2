"""Exits that say the same of every row: they have learned nothing yet.

Letters: M exits, B rows.
"""

from itertools import groupby

from multiexit import problems
from multiexit.evaluation.outputs import Outputs


def exits_alike(outputs: Outputs) -> list[int]:
    """The exits that answer every row with one class, where the labels are of several.

    Of other problems than classification none: a value or a set of labels may well be one for all.

    Args:
        outputs: from `multiexit.collect`.

    Example:
        >>> import torch, multiexit as mx
        >>> from multiexit.evaluation.alike import exits_alike
        >>> logits_MBC = torch.tensor([[[1.0, 0], [2, 0]], [[0, 2], [2, 0]]])
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=18)
        >>> exits_alike(mx.Outputs(logits_MBC, torch.tensor([1, 0]), cost))
        [0]
    """
    problem = problems.resolve(outputs.problem, outputs.num_classes)
    if problem != "classification" or len(outputs.labels_B.unique()) < 2:
        return []
    answers_MB = outputs.logits_MBC.argmax(-1)
    alike_M = (answers_MB == answers_MB[:, :1]).all(1)
    return alike_M.nonzero().flatten().tolist()


def advice(outputs: Outputs) -> str | None:
    """A sentence on such exits, and what helps them; None where there are none.

    Args:
        outputs: as for `exits_alike`.
    """
    exits = exits_alike(outputs)
    if not exits:
        return None
    runs = [[exit for _, exit in run] for _, run in groupby(enumerate(exits), _distance)]
    named = ", ".join(f"{run[0]} to {run[-1]}" if run[1:] else f"{run[0]}" for run in runs)
    several = len(exits) > 1
    return (
        f"exit{'s' * several} {named} answer{'s' * (not several)} every row alike, and "
        f"{'have' if several else 'has'} learned nothing yet: train longer (--epochs) or at a "
        "higher rate (--lr); of texts --pool mean helps early exits more than --pool first"
    )


def _distance(numbered: tuple[int, int]) -> int:
    place, exit = numbered
    return exit - place
