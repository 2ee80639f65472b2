"""Arguments that a user gives: an unknown name, and the nearest known one; numbers in bounds."""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import is_dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, Literal

from multiexit_runner.naming import suggest as suggest
from multiexit_runner.naming import unknown as unknown

ELSEWHERE = {
    "model": "backbone",
    "model_name": "backbone",
    "model_name_or_path": "backbone",
    "dataset": "data",
    "train_file": "data",
    "validation_file": "validation_data",
    "test_file": "test_data",
    "task_name": "task",
    "text_column_name": "text",
    "label_column_name": "label",
    "output_dir": "output",
    "num_train_epochs": "epochs",
    "learning_rate": "lr",
    "lr_scheduler_type": "lr_schedule",
    "warmup_ratio": "warmup",
    "max_grad_norm": "clip",
    "max_seq_length": "max_length",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation",
    "gradient_checkpointing": "checkpoint_gradients",
    "fp16": "mixed_precision",
    "bf16": "mixed_precision",
    "label_smoothing_factor": "label_smoothing",
}
"""What other tools' trainers call settings, and the options of the command line that they are."""


IN_PYTHON = "in Python; no command can, but predict and serve take the folder of an mx.export of it"
"""How a model with parts of the user's own is used, behind what loading it needs."""


def in_a_row(names: Iterable[object]) -> str:
    """Names, one after the other; one that has a comma of its own stands in quotes.

    >>> in_a_row(["film", "question, answer"])
    "film, 'question, answer'"
    """
    return ", ".join(repr(name) if "," in str(name) else str(name) for name in names)


def first_of(names: Sequence[object]) -> str:
    """The first 8 of many names.

    >>> first_of(range(10))
    '0, 1, 2, 3, 4, 5, 6, 7, …'
    """
    return ", ".join(map(str, names[:8])) + ", …" * (len(names) > 8)


def check_share(
    name: str, value: object, within: Literal["[0, 1]", "[0, 1)", "(0, 1]", "(0, 1)"]
) -> None:
    """Refuse what is no number between 0 and 1.

    Args:
        name: what the number is called in the message.
        value: the number.
        within: whether 0 and 1 belong to it.

    Raises:
        ValueError: with the name, the bounds and the number; of one that may be in percent, from 2
            on, the share it is.

    >>> check_share("mix", 1, "[0, 1]")
    >>> check_share("mix", 1, "[0, 1)")
    Traceback (most recent call last):
    ValueError: mix must be a number in [0, 1), got 1
    >>> check_share("score", 97, "[0, 1]")
    Traceback (most recent call last):
    ValueError: score must be a number in [0, 1], got 97: did you mean 0.97?
    """
    share = _number(value)
    opens = (share == 0 and within[0] == "(") or (share == 1 and within[-1] == ")")
    if opens or not 0 <= share <= 1:
        meant = f": did you mean {share / 100:g}?" if 2 <= share < 100 else ""
        raise ValueError(f"{name} must be a number in {within}, got {value!r}{meant}")


def check_positive(name: str, value: object) -> None:
    """Refuse what is no finite number above 0, as `check_share` does what is no share.

    >>> check_positive("speedup", True)
    Traceback (most recent call last):
    ValueError: speedup must be above 0, got True
    """
    if not 0 < _number(value) < math.inf:
        raise ValueError(f"{name} must be above 0, got {value!r}")


def check_whole(name: str, value: object) -> None:
    """Refuse what is no whole number from 1, as `check_share` does what is no share.

    >>> check_whole("window", 0)
    Traceback (most recent call last):
    ValueError: window must be at least 1, got 0
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_fields(kind: type) -> None:
    """Refuse a class whose numbers are no fields of a dataclass, by which all of them are known.

    Raises:
        ValueError: one that derives from a dataclass has an `__init__` of its own.
    """
    for each in kind.__mro__:
        own = vars(each)
        if is_dataclass(each) and "__init__" in own and "__dataclass_params__" not in own:
            raise ValueError(
                f"{each.__name__} must be a frozen dataclass, so that its numbers are compared and "
                "saved: write @dataclass(frozen=True) over the class, and its numbers as fields in "
                "place of __init__"
            )


def rising(name: str, values: Any, least: int, below: int | None = None) -> list[int]:
    """One whole number at least, or several that rise.

    Args:
        name: what they are called in the message.
        values: any iterable of them.
        least: the smallest that there may be.
        below: what all are below, or None.

    Raises:
        ValueError: with the bounds, and what was given.

    >>> rising("exits", (0, 2), 0, 3)
    [0, 2]
    >>> rising("exits", [0.0], 0, 3)
    Traceback (most recent call last):
    ValueError: exits must be whole numbers that rise within 0..2, got [0.0]
    """
    try:
        numbers = [operator.index(value) for value in values]
    except TypeError:
        numbers = []
    fits = bool(numbers) and numbers[0] >= least and (below is None or numbers[-1] < below)
    if not fits or any(b <= a for a, b in pairwise(numbers)):
        bounds = f"from {least} on" if below is None else f"within {least}..{below - 1}"
        raise ValueError(f"{name} must be whole numbers that rise {bounds}, got {values!r}")
    return numbers


def _number(value: object) -> Any:
    return value if isinstance(value, Real) and not isinstance(value, bool) else math.nan
