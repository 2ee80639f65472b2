"""The library's errors, spelled as commands are typed.

The library names what is wrong as Python has it, `omega_lr`, `resume=True`, `Patience(patience=1)`;
who typed a command reads `--omega-lr`, `--resume`, `patience=1`.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from multiexit.policies import POLICIES
from multiexit.policies.registry import field_types, policy_name

NAMES = {kind.__name__: name for name, kind in POLICIES.items()}


HIDDEN = 0xE000
"""From here on characters that stand for words of the user's: Unicode leaves them to us."""


def as_typed(message: str, options: Mapping[str, str], words: Sequence[str] = ()) -> str:
    """A message with options and policies as they are typed.

    Args:
        message: of an error.
        options: of the command, by their names in Python.
        words: that were typed: a folder's name stays, though an option is called so too.

    >>> options = {"omega_lr": "--omega-lr", "resume": "--resume", "head": "--head"}
    >>> as_typed("resume=True needs head='linear' or an omega_lr", options)
    '--resume needs --head linear or an --omega-lr'
    >>> as_typed("no setting of Patience; Patience(patience=1, tolerance=None) is fastest", {})
    'no setting of patience; patience=1 is fastest'
    >>> as_typed("my omega_lr is no folder", options, ["train", "my omega_lr"])
    'my omega_lr is no folder'
    """
    values = [word.partition("=")[2] if word.startswith("--") else word for word in words]
    values = {form for value in values if value for form in (value, str(Path(value)))}
    kept = [value for value in values if _spelled(value, options) != value]
    kept.sort(key=len, reverse=True)
    if kept:
        own = rf"(?<!\w)({'|'.join(map(re.escape, kept))})(?!\w)"
        message = re.sub(own, lambda found: chr(HIDDEN + kept.index(found[0])), message)
    shown = {HIDDEN + place: value for place, value in enumerate(kept)}
    return _spelled(message, options).translate(shown)


def _spelled(message: str, options: Mapping[str, str]) -> str:
    call = r"\((?:[^()]|\([^()]*\))*\)"
    message = re.sub(rf"(?<![\w.])({'|'.join(NAMES)})({call})?(?![\w(])", _policy, message)
    return _as_given(message, options)


def _policy(found: re.Match[str]) -> str:
    """A policy or its class, by the name that it has among `POLICIES`."""
    name, arguments = NAMES[found[1]], found[2]
    if arguments is None:
        return name
    kind = POLICIES[name]
    try:
        call = ast.parse(found[0], mode="eval").body
        assert isinstance(call, ast.Call)
        values = map(ast.literal_eval, call.args)
        named = {word.arg or "": ast.literal_eval(word.value) for word in call.keywords}
        return policy_name(kind(*values, **named))
    except (SyntaxError, TypeError, ValueError):  # a form, such as Patience(patience, tolerance=…)
        return f"{name}={','.join(field_types(kind)).upper()}"


def _as_given(message: str, options: Mapping[str, str]) -> str:
    """A message with options as they were given.

    A name of one word is an option where it comes first or has a value behind `=`; elsewhere it
    may be a word like any other.
    """
    names = "|".join(sorted(options, key=len, reverse=True))
    if not names:
        return message

    def option(found: re.Match[str]) -> str:
        config, name, value = found.groups()
        given = options[name]
        if value == "True":
            return given
        if value is not None:
            between = " " if given.startswith("--") else "="
            return f"{given}{between}{value.strip(chr(39))}".rstrip()
        is_option = config or "_" in name or found.start() == 0
        return given if is_option else found[0]

    around = r"(?<![\w./'\"-])", r"(?![\w/'\"-]|\.\w)"
    value = r"(?:=('[^']*'|[^\s,;:)]*))?"
    return re.sub(rf"{around[0]}(config )?({names}){value}{around[1]}", option, message)
