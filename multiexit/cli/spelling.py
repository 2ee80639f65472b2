"""The library's errors, spelled as commands are typed.

The library names what is wrong as Python has it, `omega_lr`, `resume=True`, `Patience(patience=1)`;
who typed a command reads `--omega-lr`, `--resume`, `patience=1`.
"""

import ast
import re
from collections.abc import Mapping

from multiexit.policies import POLICIES
from multiexit.policies.registry import field_types, policy_name
from multiexit_runner.naming import as_given

NAMES = {kind.__name__: name for name, kind in POLICIES.items()}


def as_typed(message: str, options: Mapping[str, str]) -> str:
    """A message with options and policies as they are typed.

    Args:
        message: of an error.
        options: of the command, by their names in Python.

    >>> options = {"omega_lr": "--omega-lr", "resume": "--resume", "head": "--head"}
    >>> as_typed("resume=True needs head='linear' or an omega_lr", options)
    '--resume needs --head linear or an --omega-lr'
    >>> as_typed("no setting of Patience; Patience(patience=1, tolerance=None) is fastest", {})
    'no setting of patience; patience=1 is fastest'
    """
    call = r"\((?:[^()]|\([^()]*\))*\)"
    message = re.sub(rf"(?<![\w.])({'|'.join(NAMES)})({call})?(?![\w(])", _policy, message)
    return as_given(message, options)


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
