"""Names as users know them: the nearest of an unknown one, and those of options as given."""

import difflib
import re
from collections.abc import Iterable, Mapping


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


def as_given(message: str, options: Mapping[str, str]) -> str:
    """A message with options as they were given.

    A name of one word is an option where it comes first or has a value behind `=`; elsewhere it
    may be a word like any other.

    Args:
        message: of an error, which names them as Python has it.
        options: by those names.

    >>> options = {"omega_lr": "--omega-lr", "resume": "--resume", "head": "$HEAD"}
    >>> as_given("resume=True needs head='linear' or an omega_lr", options)
    '--resume needs $HEAD=linear or an --omega-lr'
    """
    names = "|".join(sorted(options, key=len, reverse=True))
    if not names:
        return message

    def option(found: re.Match[str]) -> str:
        config, name, switch, value = found.groups()
        given = options[name]
        if switch:
            return given
        if value is not None:
            between = " " if given.startswith("--") else "="
            return f"{given}{between}{value.strip(chr(39))}".rstrip()
        is_option = config or "_" in name or found.start() == 0
        return given if is_option else found[0]

    value = r"[= ](True)\b|=('[^']*'|[^\s,;:)]*)"
    around = r"(?<![\w./'\"-])", r"(?![\w/'\"-]|\.\w)"
    return re.sub(rf"{around[0]}(config )?({names})(?:{value})?{around[1]}", option, message)
