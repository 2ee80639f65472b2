"""The schema of `multiexit.json`: what may be in it, checked before anything is made from it."""

import json
from pathlib import Path
from typing import Any

from multiexit.backbones import kinds, specs
from multiexit.files import schema
from multiexit.files.json_files import read_table
from multiexit.files.names import MODEL, RUN
from multiexit.model import latency
from multiexit.policies import calibration_table, registry
from multiexit.problems import PROBLEMS, resolve
from multiexit_runner.folder import SETTINGS as EXPORT

FORMAT = 1
MOST_CLASSES = 2**24

PREPROCESSING = schema.table(
    {},
    {
        "kind": schema.text,
        "task": schema.optional(schema.text),
        "metric": schema.text,
        "max_length": schema.whole(1, 2**31 - 1),
        "pairs": schema.flag,
        "normalisation": schema.optional(schema.text),
        "shape": schema.listed(schema.whole(1, specs.LARGEST), 1, 5),
        "mean": schema.either(schema.number(), schema.listed(schema.number())),
        "std": schema.either(schema.number(1e-30), schema.listed(schema.number(1e-30))),
    },
    rest=schema.plain,
)
"""The library's own keys; a user's may be anything plain."""


def _head(key: str, value: Any) -> None:
    schema.text(key, value)
    if not value or len(value) > 100:
        raise schema.wrong(key, value, "the name of a head, such as 'linear'")


TABLE = schema.table(
    {
        "format": schema.whole(FORMAT, FORMAT),
        "backbone": schema.optional(lambda key, value: kinds.check(value, key)),
        "num_classes": schema.whole(1, MOST_CLASSES),
        "exits": schema.listed(schema.whole(0, 9999), 1, 10_000),
        "head": schema.optional(_head),
        "pool": schema.one_of("first", "last", "mean"),
        "labels": schema.optional(schema.listed(schema.plain, 0, MOST_CLASSES)),
        "preprocessing": PREPROCESSING,
        "policy": schema.optional(registry.TABLE),
    },
    {
        "latency": schema.optional(latency.TABLE),
        "problem": schema.one_of(*PROBLEMS),
        "calibration": schema.optional(calibration_table.TABLE),
        "weights": schema.text,
        "backbone_class": schema.text,
    },
)


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a file of a model's folder.

    Raises:
        ValueError: with the file, the key, its value and what would be right.
    """
    if not path.exists():
        inside = path.parent / MODEL
        hint = ""
        if (inside / path.name).exists():
            hint = f"; did you mean {inside}?"
        elif (path.parent / EXPORT).exists():
            hint = (
                "; it is an export, which mx.Classifier and multiexit_runner answer with: judge, "
                "calibrate and export the model that it was made of (its own numbers, as of int8, "
                "by Runner.forward: see the documentation on exports)"
            )
        elif (path.parent / RUN).exists():
            hint = "; the run in it has left none yet: let it end, or go on with it by --resume"
        elif (path.parent / "config.json").exists():
            hint = "; put exits on it by multiexit.wrap, or `multiexit train --backbone`"
        raise ValueError(f"no {path.name} in {path.parent}: not a saved MultiExitModel{hint}")
    return read_table(
        path, "settings of a model", lambda _, data: check(data), format=FORMAT, inside=path.parent
    )


def check(settings: dict[str, Any]) -> None:
    """Refuse settings that `read_settings` would.

    Raises:
        ValueError: with the key, its value and what would be right.
    """
    TABLE("", settings)
    labels, classes = settings["labels"], settings["num_classes"]
    if labels and len(labels) != classes:
        raise ValueError(f"labels has {len(labels)} names, for num_classes {classes}")
    resolve(settings.get("problem"), classes)


def settings_text(settings: dict[str, Any]) -> str:
    """The settings as JSON, with numbers of numpy and tensors as plain ones.

    Raises:
        ValueError: what `read_settings` would refuse, or JSON can't hold.
    """
    try:
        text = json.dumps(settings, indent=2, default=_plain)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"the model's settings can't be saved: {error}") from error
    check(json.loads(text))
    return text


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{schema.short(value)} is no plain data: a number, string, list or table")


def without_places(preprocessing: dict[str, Any]) -> dict[str, Any]:
    """What a reader elsewhere needs: of the data the inputs' columns, not where they lie."""
    data = preprocessing.get("data") or {}
    columns = {name: data[name] for name in ("text", "text_pair", "image") if data.get(name)}
    rest = {name: value for name, value in preprocessing.items() if name != "data"}
    return rest | ({"data": columns} if columns else {})
