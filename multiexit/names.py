"""Names that a user types, and the nearest known one where a name is unknown."""

import difflib
from collections.abc import Iterable


def suggest(name: object, known: Iterable[str]) -> str | None:
    """The known name that is nearest, or None where none is near.

    >>> suggest("leebret", ["joint", "leebert"])
    'leebert'
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[near[0]] if near else None


def unknown(
    what: str, name: object, known: Iterable[str], listed_by: str | None = None
) -> ValueError:
    """The error for a name that isn't known: it says which is near, and which there are.

    Args:
        what: the kind of thing, for the message.
        name: that isn't known.
        known: the names that are.
        listed_by: what lists them, where they are too many for a message.

    >>> print(unknown("recipe", "leebret", ["joint", "leebert"]))
    no recipe 'leebret': did you mean 'leebert'? There are joint, leebert
    """
    known = list(known)
    near = suggest(name, known)
    opening = "; there" if near is None else f": did you mean {near!r}? There"
    there = ", ".join(known) if listed_by is None else f"{len(known)}, see {listed_by}"
    return ValueError(f"no {what} {name!r}{opening} are {there}")
