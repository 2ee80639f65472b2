"""Labels as users write them: which problem they pose, which classes there are, and their numbers.

Letters: N rows, C classes or outputs.
"""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from numbers import Real
from typing import Any

from multiexit.arguments import first_of, in_a_row, unknown
from multiexit.losses.class_names import missing

MANY = 50
"""More whole numbers than this could be classes or values: the user says which."""

FEW = 0.05
"""Words among numbers, up to this share of rows, are more likely mistakes than classes."""

LARGEST = 1e18
"""Beyond it float32 can't hold a number's square, by which losses and scores reckon."""

NEAR = 1e-4
"""Spread of numbers, as a share of the largest, below which float32 has three digits of it."""

SEVERAL = list | tuple | set | frozenset
LISTS = (
    "A list has the names or numbers of the labels that the row has, such as [0, 2]; yes and no "
    "for each label stand in columns of their own"
)

OTHERWISE = re.compile(r"[-+]?\d[\d.,' ]*%?")
"""A number as people write it, such as 0,5 or 1,000 or 5 %."""

YES_NO = {"0": 0, "1": 1, "false": 0, "true": 1, "no": 0, "yes": 1}


@dataclass(frozen=True)
class Targets:
    """What labels say.

    Args:
        problem: `"classification"`, `"regression"` or `"multi-label"`.
        names: the classes' names in the order of their numbers; None of regression.
        num_classes: C.
    """

    problem: str
    names: tuple[str, ...] | None
    num_classes: int

    def number(self, value: Any) -> Any:
        """A row's label as a number, or several.

        Args:
            value: as the table has it; of several labels a list of names, or a list of yes and no.

        Raises:
            ValueError: what is no label, with the reason.
        """
        if self.problem == "regression":
            return _float(value)
        assert self.names is not None
        if self.problem == "multi-label":
            return _several(value, self.names)
        name = _name(value)
        if name not in self._numbers:
            raise ValueError(
                f"none of the {len(self.names)} classes ({first_of(self.names)}) is the row's label"
            )
        return self._numbers[name]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names or ())}


def of_columns(names: Sequence[str]) -> Targets:
    """The targets of several columns, each of yes and no."""
    return Targets("multi-label", tuple(names), len(names))


def given(names: Sequence[Any] | None, num_classes: int, problem: str) -> Targets:
    """The targets of a model that is trained already."""
    listed = None if names is None else tuple(map(str, names))
    if listed is None and problem != "regression":
        listed = tuple(map(str, range(num_classes)))
    return Targets(problem, listed, num_classes)


def found(
    values: list[Any], problem: str | None = None, names: Sequence[str] | None = None
) -> tuple[Targets, str]:
    """The targets that a column of labels has, and what was guessed, as a sentence.

    Args:
        values: the training set's labels, without gaps.
        problem: as named by the user; None guesses: lists are several labels, numbers with
            fractions values, anything else classes.
        names: of the classes, where the source numbers them itself.

    Raises:
        ValueError: one class only, values that are none, or a guess that is none.
    """
    if problem not in (None, "classification", "regression", "multi-label"):
        raise unknown("problem", problem, ("classification", "regression", "multi-label"))
    if problem is None:
        problem = _guess(values, names)
    if problem == "regression":
        numbers = _good(_float, values)
        if min(numbers) == max(numbers):
            raise ValueError(f"all {len(numbers)} labels are {numbers[0]:g}: nothing to learn")
        if max(numbers) - min(numbers) < NEAR * max(map(abs, numbers)):
            raise ValueError(
                f"labels are numbers from {min(numbers)!r} to {max(numbers)!r}, which float32 "
                f"hardly tells apart: take {min(numbers)!r} from all of them"
            )
        return (
            Targets("regression", None, 1),
            f"labels are numbers from {min(numbers):g} to {max(numbers):g} (regression)",
        )
    if names is not None:
        listed = tuple(map(str, names))
    elif problem == "multi-label":
        lists = _good(_list, values)
        listed = _ordered({name for names in lists for name in names})
        if listed and all(len(names) == len(listed) for names in lists):
            raise ValueError(
                f"all {len(lists)} rows have all labels, {', '.join(listed[:8])}: nothing to "
                f"learn. {LISTS}"
            )
    else:
        _check_kinds(values)
        listed = _ordered(set(_good(_name, values)))
    _check_differ(listed)
    if problem == "classification" and len(listed) < 2:
        raise ValueError(
            f"all {len(values)} rows have the label {''.join(listed)!r}: it takes two classes"
        )
    if problem == "classification" and len(listed) > max(MANY, len(values) // 2):
        raise ValueError(
            f"{len(listed)} different labels in {len(values)} rows, such as {listed[0]!r}: is that "
            f"the label's column?{written_otherwise(listed)}"
        )
    shown = in_a_row(listed[:8]) + (f", … ({len(listed)})" if len(listed) > 8 else "")
    kind = "labels, several a row" if problem == "multi-label" else "classes in this order"
    return Targets(
        problem, listed, len(listed)
    ), f"{kind}: {shown}{_alike(listed)}{written_otherwise(listed)}"


def written_otherwise(names: Sequence[str]) -> str:
    """What to say of names that are numbers in another way of writing; nothing of others."""
    words = [name for name in names if _number(name) is None]
    if not words or not all(map(OTHERWISE.fullmatch, words)):
        return ""
    return (
        f" ({words[0]!r} is read as a name: numbers are written with a point, without marks for "
        "thousands and without %)"
    )


def _guess(values: Sequence[Any], names: Sequence[str] | None) -> str:
    if any(isinstance(value, SEVERAL) for value in values):
        return "multi-label"
    if names is not None:
        return "classification"
    numbers = [_number(value) for value in values]
    fraction = next((n for n in numbers if n is not None and n != int(n)), None)
    if None in numbers:
        word, words = values[numbers.index(None)], numbers.count(None)
        if fraction is not None or words <= FEW * len(numbers):
            number = fraction or next(n for n in numbers if n is not None)
            raise ValueError(
                f"labels are numbers such as {number:g}, and {words} that are none, such as "
                f"{word!r:.80}: say problem='classification' if all are classes, or "
                "problem='regression', by which rows without a number can't be used"
            )
        return "classification"
    if fraction is not None:
        return "regression"
    distinct = len(set(numbers))
    if distinct > MANY:
        raise ValueError(
            f"{distinct} different whole numbers as labels: are they classes or values? Say "
            "problem='classification' or problem='regression'"
        )
    return "classification"


def _name(value: Any) -> str:
    """A class as it is called, of a string or a number: 1.0 is called 1, as it stands for it."""
    if (
        missing(value)
        or isinstance(value, dict | bytes | SEVERAL)
        or value in (math.inf, -math.inf)
    ):
        raise ValueError("a label that is no name and no number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    name = str(value).strip()
    if not name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in name):
        raise ValueError("a label with half a character (a lone surrogate)")
    return name


def _good(read: Callable[[Any], Any], values: list[Any]) -> list[Any]:
    """What can be read of values, the others being named with their rows later.

    Raises:
        ValueError: none can.
    """
    results, first = [], None
    for value in values:
        try:
            results.append(read(value))
        except ValueError as error:
            first = first or ValueError(f"{error}, {value!r:.80}, and none of the others is one")
    if first is not None and not results:
        raise first
    return results


def _check_kinds(values: Iterable[Any]) -> None:
    """Refuse true and false among other labels: is true 1, or a class of its own?"""
    kinds = {type(value) is bool: value for value in values}
    if len(kinds) > 1:
        raise ValueError(
            f"labels such as {kinds[True]!r} and {kinds[False]!r} are of two kinds: write true and "
            "false alone, or numbers or names alone"
        )


def _alike(names: Iterable[str]) -> str:
    """What to say of names that differ in capitals alone."""
    folded: dict[str, str] = {}
    for name in names:
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            return f" ({other!r} and {name!r} count as two)"
    return ""


def _check_differ(names: Iterable[str]) -> None:
    """Refuse names that are one number, or one word in two ways of Unicode.

    Letters that nobody sees, such as zero-width spaces, make no difference.
    """
    alike: dict[Any, list[str]] = defaultdict(list)
    for name in names:
        alike[_seen(name) if _number(name) is None else Decimal(name)].append(name)
    for same in alike.values():
        if len(same) > 1:
            raise ValueError(
                f"labels {same[0]!r} and {same[1]!r} look like one class written in two ways "
                f"({same[0]!a}, {same[1]!a}): write it in one"
            )


def _seen(name: str) -> str:
    """What is seen of a name."""
    shown = (letter for letter in name if unicodedata.category(letter) != "Cf")
    return " ".join(unicodedata.normalize("NFC", "".join(shown)).split())


def _ordered(names: set[str]) -> tuple[str, ...]:
    """By number where all are numbers, else by letters."""
    numbers = {name: _number(name) for name in names}
    if all(number is not None for number in numbers.values()):
        return tuple(sorted(names, key=lambda name: (numbers[name], name)))
    return tuple(sorted(names))


def _list(value: Any) -> list[str]:
    """The names of a row's labels."""
    if not isinstance(value, SEVERAL):
        raise ValueError("several labels a row are a list of names")
    if any(isinstance(name, float) and not name.is_integer() for name in value):
        raise ValueError(f"a list of numbers with fractions. {LISTS}")
    names = [_name(name) for name in value]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"a list with {twice[0]} twice. {LISTS}")
    return names


def _several(value: Any, names: tuple[str, ...]) -> list[float]:
    """0 and 1 for each name."""
    if isinstance(value, dict):  # columns of yes and no
        return [_yes_no(value[name], name) for name in names]
    chosen = {*_list(value)}
    if strange := sorted(chosen - {*names}):
        raise ValueError(f"a label {strange[0]!r} that isn't among {', '.join(names)}")
    return [float(name in chosen) for name in names]


def _yes_no(value: Any, name: str) -> float:
    number = YES_NO.get(_name(value).lower())
    if number is None:
        raise ValueError(
            f"column {name!r} is to be 0 or 1, yes or no (several columns are several labels; "
            "several numbers a row can't be had)"
        )
    return float(number)


def _number(value: Any) -> float | None:
    if isinstance(value, str) and "_" in value:  # Python's way to write 1000, and nobody else's
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _float(value: Any) -> float:
    number = None if missing(value) or isinstance(value, bool) else _number(value)
    if number is None or not isinstance(value, Real | str):
        raise ValueError("a label that is no number")
    if abs(number) > LARGEST:
        raise ValueError(f"a number beyond {LARGEST:g}, whose square float32 can't hold")
    return number
