"""Policies by name: as typed on a command line, and as saved with a model."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_type_hints

from multiexit.arguments import IN_PYTHON, unknown
from multiexit.files import schema
from multiexit.policies.base import ExitPolicy
from multiexit.policies.certificate import TABLE as CERTIFICATE
from multiexit.policies.certificate import Certificate
from multiexit.policies.confidence import (
    Certainty,
    Entropy,
    Margin,
    MaxProb,
    MostConfident,
    NormalizedEntropy,
)
from multiexit.policies.ensembles import Beem, ProductOfExperts
from multiexit.policies.numbers import plain
from multiexit.policies.patience import FixedExit, Patience, PatientConfident
from multiexit.policies.vectors import Settled

POLICIES: dict[str, type[ExitPolicy]] = {
    "entropy": Entropy,
    "normalized-entropy": NormalizedEntropy,
    "max-prob": MaxProb,
    "most-confident": MostConfident,
    "margin": Margin,
    "patience": Patience,
    "patient-confident": PatientConfident,
    "product": ProductOfExperts,
    "beem": Beem,
    "certainty": Certainty,
    "settled": Settled,
    "fixed": FixedExit,
}

AnyNumber = TypeVar("AnyNumber", int, float)

TABLE = schema.table({"class": schema.text}, {"certificate": CERTIFICATE}, rest=schema.plain)
"""The schema of a saved policy: its class, and that class's fields."""


def parse(text: str) -> ExitPolicy:
    """Read a policy as typed on a command line: `patience=4`, `patient-confident=0.2,3`.

    A threshold per exit is written with slashes: `max-prob=0.99/0.95/0.9`.

    Args:
        text: a key of `POLICIES`, `=`, and the policy's numbers in the order of its fields,
            separated by commas.

    Raises:
        ValueError: an unknown name, or numbers that don't fit.

    Example:
        >>> import multiexit as mx
        >>> mx.policies.parse("patient-confident=0.2,3")
        PatientConfident(threshold=0.2, patience=3)
        >>> mx.policies.parse("max-prob=0.99/0.95/0.9")
        MaxProb(threshold=(0.99, 0.95, 0.9))
    """
    name, _, values = text.partition("=")
    if name not in POLICIES:
        raise unknown("policy", name, sorted(POLICIES))
    kind = POLICIES[name]
    types = field_types(kind)
    texts = values.split(",") if values else []
    if len(texts) > len(types):
        raise ValueError(
            f"{name} takes {list(types)}, got {values!r:.80}: write "
            f"{name}={','.join(types).upper()}, decimals with a point"
        )
    try:
        numbers = [
            _read(value, int) if field_type is int else _read_number(value)
            for field_type, value in zip(types.values(), texts, strict=False)
        ]
        return kind(*numbers)
    except (TypeError, ValueError) as error:
        form = ",".join(types).upper()
        why = "" if isinstance(error, TypeError) else f" ({error})"  # too few numbers, or which
        raise ValueError(f"can't read policy {text!r:.80}: write {name}={form}{why}") from error


def _read_number(text: str) -> float | tuple[float, ...]:
    parts = tuple(_read(part, float) for part in text.split("/"))
    return parts if "/" in text else parts[0]


def _read(text: str, kind: type[AnyNumber]) -> AnyNumber:
    if not text or "_" in text or not text.isascii():  # which Python's own would read in part
        raise ValueError(f"{text!r:.80} is no number")
    return kind(text)


def field_types(kind: type[ExitPolicy]) -> dict[str, Any]:
    """The names and types of a policy's fields, in order.

    Raises:
        ValueError: a type that isn't there when the program runs.
    """
    try:
        hints = get_type_hints(kind)
    except NameError as error:
        raise ValueError(
            f"the types of {kind.__name__}'s fields can't be read, as {error}: import it outside "
            "of `if TYPE_CHECKING`, or say Any"
        ) from error
    return {f.name: hints[f.name] for f in fields(kind)}


def to_json(policy: ExitPolicy) -> dict[str, Any]:
    """The policy as plain data: its class's name, its fields, and its certificate if it has one.

    >>> from multiexit.policies import Patience
    >>> to_json(Patience(4))
    {'class': 'Patience', 'patience': 4, 'tolerance': None}
    """
    # A dataclass stays one, so that whoever writes JSON refuses it: it wouldn't come back.
    values = {f.name: plain(getattr(policy, f.name)) for f in fields(policy)}
    data = {"class": type(policy).__name__, **values}
    if policy.certificate is not None:
        data["certificate"] = policy.certificate.to_json()
    return data


def check_saved(policy: ExitPolicy) -> None:
    """Refuse a policy with a field that JSON can't hold, by a ValueError."""
    TABLE("policy", to_json(policy))


def from_json(data: dict[str, Any], others: Sequence[type[ExitPolicy]] = ()) -> ExitPolicy:
    """The policy that `to_json` wrote.

    Args:
        data: what `to_json` gave.
        others: classes of the user's own, beside the built-in ones.

    Raises:
        ValueError: a class that is neither built in nor among `others`; fields that it lacks or
            doesn't know, or values that it refuses.
    """
    TABLE("policy", data)
    classes = {kind.__name__: kind for kind in (*POLICIES.values(), *others)}
    name = data["class"]
    if name not in classes:
        shown = schema.short(name).strip("'")
        raise ValueError(
            f"the saved policy is a {shown}, which is not built in: pass policies=[{shown}] "
            f"{IN_PYTHON}"
        )
    kind = classes[name]
    values = {key: data[key] for key in data if key not in ("class", "certificate")}
    optional = {f.name for f in fields(kind) if not (f.default is f.default_factory is MISSING)}
    names = [f.name for f in fields(kind) if f.init]
    needed = {key: schema.plain for key in names if key not in optional}
    schema.table(needed, {key: schema.plain for key in names if key in optional})("policy", values)
    try:
        policy = kind(**values)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ValueError(f"policy is {schema.short(data)}: {error}") from error
    if "certificate" not in data:
        return policy
    return policy.with_certificate(Certificate.from_json(data["certificate"]))


def policy_name(policy: ExitPolicy | Mapping[str, Any]) -> str:
    """A policy (or its `to_json`) as typed on the command line; one of the user's own as a call.

    What is typed so is the policy itself, but numbers per exit have four digits.

    >>> policy_name(MaxProb((0.99, 0.9)))
    'max-prob=0.99/0.9'
    """
    data = dict(to_json(policy) if isinstance(policy, ExitPolicy) else policy)
    kind = data.pop("class")
    data.pop("certificate", None)
    data = {name: value for name, value in data.items() if value is not None}
    values = {k: _as_typed(v) for k, v in data.items()}
    for name, policy_class in POLICIES.items():
        if policy_class.__name__ == kind:
            return f"{name}={','.join(values.values())}"
    return f"{kind}({', '.join(f'{name}={value}' for name, value in values.items())})"


def _as_typed(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "/".join(f"{number:.4g}" for number in value)
    short = f"{value:.4g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else str(value)
