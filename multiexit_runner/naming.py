"""Names as users know them: the nearest of an unknown one, and those of options as given."""

import difflib
from collections.abc import Iterable, Mapping
from string import Formatter


def suggest(name: object, known: Iterable[str]) -> str | None:
    """The known name that is nearest, or None where none is near.

    >>> suggest("leebret", ["joint", "leebert"])
    'leebert'
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[near[0]] if near else None


def unknown(
    what: str,
    name: object,
    known: Iterable[str],
    listed_by: str | None = None,
    there: str = "there are",
) -> ValueError:
    """The error for a name that isn't known: it says which is near, and which there are.

    Args:
        what: the kind of thing, for the message.
        name: that isn't known.
        known: the names that are.
        listed_by: what lists them, where they are too many for a message.
        there: what the message says before them.

    >>> print(unknown("recipe", "leebret", ["joint", "leebert"]))
    no recipe 'leebret': did you mean 'leebert'? There are joint, leebert
    >>> print(unknown("number", "patience", ["threshold"], there="this policy has"))
    no number 'patience'; this policy has threshold
    """
    known = list(known)
    near = suggest(name, known)
    listed = (", ".join(known) or "none") if listed_by is None else f"{len(known)}, see {listed_by}"
    if near is None:
        return ValueError(f"no {what} {name!r:.80}; {there} {listed}")
    there = there[0].upper() + there[1:]
    return ValueError(f"no {what} {name!r:.80}: did you mean {near!r}? {there} {listed}")


class OptionError(ValueError):
    """What is wrong with options: they stand in a sentence in braces, and can be named otherwise.

    Args:
        sentence: with names in Python in braces, and empty ones for values.
        values: what came, and what would be right.

    >>> error = OptionError("{port} must be at most {}, got {!r}", 65535, "a port")
    >>> print(error)
    port must be at most 65535, got 'a port'
    >>> error.named({"port": "--port"})
    "--port must be at most 65535, got 'a port'"
    """

    def __init__(self, sentence: str, *values: object):
        super().__init__(sentence, *values)

    def __str__(self) -> str:
        return self.named({})

    def named(self, options: Mapping[str, str]) -> str:
        """The sentence with options by other names."""
        sentence, *values = self.args
        return Formatter().vformat(sentence, values, _Itself(options))


class SpelledError(ValueError):
    """What is wrong with options, by the names by which they were given."""


class _Itself(dict[str, str]):
    def __missing__(self, name: str) -> str:
        return name
