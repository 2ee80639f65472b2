"""The schema of `export.json`, checked in one place before anything is run."""

import json
import reprlib
from collections.abc import Sequence, Set
from numbers import Integral, Real
from typing import Any

from multiexit_runner.drift import COUNTS, unpacked
from multiexit_runner.folder import is_plain_name
from multiexit_runner.json_files import unique_keys

FORMAT = 3
ROW_OUTPUTS = ("logits", "answer", "stop")
"""A graph's outputs about its rows; its others are for the graphs behind it."""

KEYS = {
    "format", "versions", "num_classes", "exits", "labels", "preprocessing", "inputs",
    "max_tokens", "policy", "knobs", "segments", "int8", "parity",
}  # fmt: skip
PROBLEMS = ("classification", "multi-label", "regression", "token-classification", "embedding")
TYPES = ("int64", "int32", "float32", "bool")
PRECISIONS = ("float32", "int8")  # of the network that a calibration table is of
INT64 = 2**63 - 1
FLOAT32 = 3.4e38


def without_bounds(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings where numbers are rounded: rows were bounded, and counted, in float32."""
    policy = {k: v for k, v in settings["policy"].items() if k != "certificate"}
    table = settings.get("calibration")
    if table is not None:
        rows = [{**setting, "loss_bound": None, "counts": None} for setting in table["settings"]]
        table = {**table, "settings": rows}
    return {**settings, "policy": policy, "calibration": table}


def parse_settings(data: bytes, where: str) -> dict[str, Any]:
    """The settings in a file's bytes.

    Raises:
        ValueError: what is no JSON object of this form: the file, the key, the value, and what
            would be right.
    """
    try:
        settings = json.loads(
            data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=unique_keys
        )
        _check_settings(settings)
    except (ValueError, RecursionError) as error:
        what = "it is nested too deep" if isinstance(error, RecursionError) else error
        raise ValueError(f"{where}: {what}") from error
    return settings


def check_knob(name: str, old: float, number: Any) -> None:
    """Refuse a number of a policy that isn't of the kind of the old one.

    Args:
        name: of the number.
        old: as it stands.
        number: in its place.

    Raises:
        ValueError: with the name, the number and what would be right.
    """
    if isinstance(old, int):
        whole = _is_whole(number) or (_is_number(number) and float(number).is_integer())
        _need(whole and abs(number) <= INT64, name, number, "a whole number of 64 bits")
    else:
        _need(_is_number(number), name, number, "a finite number that fits in float32")


def check_range(name: str, limits: Sequence[float] | None, number: float) -> None:
    """Refuse a number that the policy can't have.

    Args:
        name: of the number.
        limits: the lowest and the highest, or None for any.
        number: the new one.

    Raises:
        ValueError: with the name, the number and what would be right.
    """
    if limits is not None:
        low, high = limits
        _need(low <= number <= high, name, number, f"from {low} to {high}")


def _check_pairs(key: str, pairs: Any, knobs: dict[str, Any]) -> None:
    for name, limits in _checked_table(key, pairs).items():
        pair = isinstance(limits, list) and len(limits) == 2 and all(map(_is_number, limits))
        _need(name in knobs and pair, f"{key}.{name}", limits, "two numbers, of one of the knobs")


def _check_settings(settings: Any) -> None:
    _need(isinstance(settings, dict), "the whole", settings, "a JSON object")
    if settings.get("format") != FORMAT or isinstance(settings["format"], bool):
        raise ValueError(
            f"it has format {reprlib.repr(settings.get('format'))}; this version reads {FORMAT}: "
            "export the model again, or use the multiexit_runner of the version that wrote it"
        )
    older = {"ranges", "scales", "problem", "calibration"}  # which older folders lack
    _check_keys("the whole", settings, KEYS, older)
    _check_whole("num_classes", settings["num_classes"], 1)
    usual = "regression" if settings["num_classes"] == 1 else "classification"
    problem = settings.setdefault("problem", usual)
    _need(problem in PROBLEMS, "problem", problem, f"one of {', '.join(PROBLEMS)}")
    for key in ("versions", "preprocessing", "policy"):
        _need(isinstance(settings[key], dict), key, settings[key], "a table")
    classes, labels = settings["num_classes"], settings["labels"]
    if labels is not None:
        _check_names("labels", labels, distinct=False)
        _need(len(labels) == classes, "labels", labels, f"null or {classes} strings")
    if settings["max_tokens"] is not None:
        _check_whole("max_tokens", settings["max_tokens"], 1)
    _check_inputs(settings["inputs"])
    _need(isinstance(settings["knobs"], dict), "knobs", settings["knobs"], "a table of numbers")
    for name, number in settings["knobs"].items():
        check_knob(f"knobs.{name}", number, number)
    for key in ("ranges", "scales"):
        _check_pairs(key, settings.setdefault(key, {}), settings["knobs"])
    for name, limits in settings["ranges"].items():
        check_range(f"knobs.{name}", limits, settings["knobs"][name])
    _check_segments(settings)
    _check_calibration(settings.setdefault("calibration", None), len(settings["segments"]))
    exits = settings["exits"]
    many = isinstance(exits, list) and len(exits) == len(settings["segments"])
    _need(many and all(map(_is_whole, exits)), "exits", exits, "a whole number for each segment")
    if settings["int8"] is not None:
        _check_keys("int8", settings["int8"], {"target", "machines"})
        for key, value in settings["int8"].items():
            _need(isinstance(value, str), f"int8.{key}", value, "a string")
    for key, value in _checked_table("parity", settings["parity"]).items():
        _need(key == "on" or _is_number(value), f"parity.{key}", value, "a finite number")


def _check_calibration(table: Any, exits: int) -> None:
    """A calibration table, as far as it is read here."""
    if table is None:
        return
    needed = {"metric", "score", "rows", "loss", "confidence", "settings"}
    _check_keys("calibration", table, needed, {"precision"})
    _check_whole("calibration.rows", table["rows"], 1)
    for name in ("score", "confidence"):
        _need(_is_number(table[name]), f"calibration.{name}", table[name], "a finite number")
    precision = table.setdefault("precision", "float32")
    _need(precision in PRECISIONS, "calibration.precision", precision, "float32 or int8")
    settings = table["settings"]
    _need(isinstance(settings, list) and settings, "calibration.settings", settings, "a list")
    figures = {"score", "mean_layers", "speedup_layers", "speedup_macs"}
    for place, setting in enumerate(settings):
        key = f"calibration.settings[{place}]"
        _check_keys(key, setting, {*figures, "loss_bound", "policy", "shares_M"}, {"counts"})
        for name in sorted(figures):
            _need(_is_number(setting[name]), f"{key}.{name}", setting[name], "a finite number")
        bound, shares = setting["loss_bound"], setting["shares_M"]
        within = bound is None or (_is_number(bound) and 0 <= bound <= 1)
        _need(within, f"{key}.loss_bound", bound, "null or from 0 to 1")
        listed = isinstance(shares, list) and len(shares) == exits and all(map(_is_number, shares))
        _need(listed, f"{key}.shares_M", shares, "a number for each segment")
        counts = setting.setdefault("counts", None)
        right = counts is None or unpacked(counts, exits, table["rows"]) is not None
        _need(right, f"{key}.counts", counts, COUNTS)
        _checked_table(f"{key}.policy", setting["policy"])


def _check_inputs(inputs: Any) -> None:
    _need(
        bool(_checked_table("inputs", inputs)), "inputs", inputs, "a table with at least one input"
    )
    for name, spec in inputs.items():
        key = f"inputs.{name}"
        _check_keys(key, spec, {"dtype", "shape"}, {"below"})
        _need(spec["dtype"] in TYPES, f"{key}.dtype", spec["dtype"], f"one of {', '.join(TYPES)}")
        shape = spec["shape"]
        right = (
            isinstance(shape, list)
            and shape[:1] == ["B"]
            and all(size == "T" or (_is_whole(size) and size >= 0) for size in shape[1:])
        )
        _need(right, f"{key}.shape", shape, 'a list that begins with "B", then "T" or numbers')
        if "below" in spec:
            _check_whole(f"{key}.below", spec["below"], 1)


def _check_segments(settings: dict[str, Any]) -> None:
    """Each segment reads what is there, and says what it must."""
    segments = settings["segments"]
    _need(isinstance(segments, list) and segments, "segments", segments, "a list of segments")
    readable = {*settings["inputs"], *(f"policy.{name}" for name in settings["knobs"])}
    for exit, segment in enumerate(segments):
        key = f"segments[{exit}]"
        _check_keys(key, segment, {"file", "inputs", "outputs"})
        file = segment["file"]
        _need(is_plain_name(file), f"{key}.file", file, "a plain file name of this folder")
        _check_names(f"{key}.inputs", segment["inputs"])
        _check_names(f"{key}.outputs", segment["outputs"])
        unknown = [name for name in segment["inputs"] if name not in readable]
        _need(not unknown, f"{key}.inputs", unknown, f"among {sorted(readable)}")
        needed = {"logits"} if exit == len(segments) - 1 else {"logits", "stop"}
        answers = set(segment["outputs"]) & {"logits", "stop"}
        _need(
            answers == needed, f"{key}.outputs", segment["outputs"], f"names with {sorted(needed)}"
        )
        readable |= set(segment["outputs"]) - set(ROW_OUTPUTS)


def _need(right: Any, key: str, value: Any, expected: str) -> None:
    if not right:
        raise ValueError(f"{key} is {reprlib.repr(value)}; it must be {expected}")


def _check_whole(key: str, value: Any, low: int) -> None:
    _need(_is_whole(value) and low <= value <= INT64, key, value, f"a whole number from {low}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_real(value) and abs(value) <= FLOAT32


def _is_real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_names(key: str, value: Any, distinct: bool = True) -> None:
    right = isinstance(value, list) and all(isinstance(name, str) for name in value)
    right = right and (not distinct or len(set(value)) == len(value))
    _need(right, key, value, "a list of strings" + ", none of them twice" * distinct)


def _checked_table(key: str, value: Any) -> dict[str, Any]:
    _need(isinstance(value, dict), key, value, "a table")
    return value


def _check_keys(key: str, value: Any, needed: Set[str], others: Set[str] = frozenset()) -> None:
    wrong = sorted((set(_checked_table(key, value)) ^ needed) - others)
    if wrong:
        name, keys = f"{key}: the key {reprlib.repr(wrong[0])}", sorted(needed | others)
        _need(False, name, value.get(wrong[0], "missing"), f"one of {keys}, all of them there")


def _no_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON; numbers must be finite")
