"""A model's card: the page that stands beside it on the hub, from its settings and results."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multiexit import problems
from multiexit.arguments import in_a_row
from multiexit.evaluation.cells import exit_cells, policy_cells
from multiexit.evaluation.report import table
from multiexit.files.names import PICTURE
from multiexit.files.writing import write
from multiexit.model.folder import SETTINGS
from multiexit.model.settings import read_settings
from multiexit.policies.registry import policy_name

CARD = "README.md"
SHOWN = 12
"""Policies in the card's table, at most."""

LANGUAGE = {"text": "text-classification", "image": "image-classification"}


def card_text(
    settings: Mapping[str, Any],
    results: Mapping[str, Any] | None = None,
    *,
    name: str = "model",
    backbone: str | None = None,
    licence: str | None = None,
    picture: bool = False,
) -> str:
    """The card as Markdown, with the hub's own header.

    Args:
        settings: what `multiexit.json` holds.
        results: of the run, as `multiexit.evaluation.results.results_json` gives them.
        name: of the model.
        backbone: the name that the network came by.
        licence: of the backbone, by the hub's short name.
        picture: whether `results.png` lies beside it.

    Example:
        >>> import multiexit as mx
        >>> from multiexit.evaluation.card import card_text
        >>> model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=10, exits=[2, 8])
        >>> text = card_text(model.settings(None), name="tiny")
        >>> "2 exits, behind 3 and 9 of its layers" in text
        True
    """
    exits = [stage + 1 for stage in settings["exits"]]
    kind = settings["preprocessing"].get("kind")
    header = {
        "library_name": "multiexit",
        "tags": ["multiexit", "early-exit"],
        **({"pipeline_tag": LANGUAGE[kind]} if kind in LANGUAGE else {}),
        **({"license": licence} if licence else {}),
        **({"base_model": backbone} if backbone and backbone.count("/") == 1 else {}),
    }
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---", ""]
    behind = f"{', '.join(map(str, exits[:-1]))} and {exits[-1]}" if exits[1:] else str(exits[0])
    lines += [
        f"# {name}",
        "",
        f"A network with {len(exits)} exits, behind {behind} of its layers: easy inputs leave "
        "early, hard ones run through.",
        "",
    ]
    known = {
        "backbone": backbone,
        "licence of the backbone": licence or (backbone and "see there"),
        **facts(settings),
        "trained by": (results or {}).get("about", {}).get("recipe"),
    }
    lines += [f"- {key}: {value}" for key, value in known.items() if value]
    lines += ["", "## Use", "", *_use(kind), ""]
    if results is not None:
        title = results["about"].get("title", "")
        policies = results["policies"][:SHOWN]
        lines += [
            f"## Results: {title}",
            "",
            f"{results['examples']} rows; {results['metric']}.",
            "",
            table(exit_cells(results["exits"]), markdown=True),
            "",
            table(policy_cells(policies), markdown=True),
            "",
        ]
        if picture:
            lines += [f"![Score of each exit, and score against speed-up]({PICTURE})", ""]
    return "\n".join(lines)


def write_card(folder: str | Path, results: Mapping[str, Any] | None = None, **about: Any) -> Path:
    """Write a model folder's card.

    Args:
        folder: that `save_pretrained` wrote.
        results, about: as for `card_text`.

    Returns:
        The card's path.

    Raises:
        ValueError: no such folder.
    """
    folder = Path(folder)
    settings = read_settings(folder / SETTINGS)
    text = card_text(settings, results, picture=(folder / PICTURE).is_file(), **about)
    write(folder / CARD, lambda path: path.write_text(text, encoding="utf-8"))
    return folder / CARD


def renew_card(folder: str | Path) -> None:
    """Say again in a folder's card what `facts` says, after a calibration; no card, nothing done.

    Args:
        folder: of a model, with its settings and perhaps the card of `write_card`.
    """
    card = Path(folder) / CARD
    lines = card.read_text(encoding="utf-8").split("\n") if card.is_file() else []
    now = facts(read_settings(Path(folder) / SETTINGS))
    first = next((n for n, line in enumerate(lines) if line.startswith("- answers: ")), None)
    if first is None:  # none, or a page of the user's own
        return
    last = lines.index("", first)
    others = [line for line in lines[first:last] if line[2:].partition(": ")[0] not in now]
    lines[first:last] = [*(f"- {key}: {value}" for key, value in now.items() if value), *others]
    write(card, lambda path: path.write_text("\n".join(lines), encoding="utf-8"))


def licence_of(backbone: str | None) -> str | None:
    """The licence that a local folder's own card names, or None."""
    card = None if backbone is None else Path(backbone) / CARD
    if card is None or not card.is_file():
        return None
    head = card.read_text(encoding="utf-8", errors="replace").split("\n---", 1)[0].splitlines()
    line = next((line for line in head if line.startswith("license:")), "")
    return line.partition(":")[2].strip().strip("'\"") or None


def facts(settings: Mapping[str, Any]) -> dict[str, str | None]:
    """What a model answers, how it stops, and what is certified, in words.

    Args:
        settings: what `multiexit.json` holds.
    """
    return {
        "answers": _answers(settings),
        "stops by": None if settings["policy"] is None else policy_name(settings["policy"]),
        "certificate": _certificate(settings["policy"]),
        "calibration table": _table(settings.get("calibration")),
    }


def _answers(settings: Mapping[str, Any]) -> str:
    labels, count = settings["labels"], settings["num_classes"]
    problem = problems.resolve(settings.get("problem"), count)
    names = f": {in_a_row(labels[:20])}" if labels else ""
    return f"{problem}, {count} output{'s' * (count > 1)}{names}"


def _certificate(policy: Mapping[str, Any] | None) -> str | None:
    certificate = (policy or {}).get("certificate")
    if certificate is None:
        return None
    sure = certificate.get("confidence")
    how = "on average" if sure is None else f"with {sure:.0%} confidence"
    bounds = ", ".join(
        f"{bound['risk']:g} ({bound['loss']})"
        for bound in (certificate, *certificate.get("also", ()))
    )
    rows = certificate["rows"]
    return f"a mean loss of at most {bounds}, {how}, on rows like the {rows} that calibrated it"


def _table(calibration: Mapping[str, Any] | None) -> str | None:
    if calibration is None:
        return None
    settings = calibration["settings"]
    fastest = max(setting["speedup_layers"] for setting in settings)
    return (
        f"{len(settings)} settings of {policy_name(settings[0]['policy']).partition('=')[0]}, up "
        f"to {fastest:.2f} times fewer layers, measured on {calibration['rows']} rows"
        + " in int8"
        * (calibration.get("precision") == "int8")
    )


def _use(kind: str | None) -> list[str]:
    example = {"text": '"a fine film"', "image": '"cat.png"'}.get(str(kind), "…")
    return [
        "```python",
        "import multiexit as mx",
        "",
        'model = mx.MultiExitModel.from_pretrained("FOLDER")',
        "```",
        "",
        "```sh",
        f"multiexit predict FOLDER {example}"
        if kind == "image"
        else f"echo {example} | multiexit predict FOLDER",
        "```",
    ]
