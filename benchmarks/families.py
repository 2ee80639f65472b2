"""Which families of networks `mx.wrap` takes, on small random ones of each: the tests' zoos.

python benchmarks/families.py --output docs/results/families
python benchmarks/families.py vision --output docs/results/vision

*at one length* counts those of transformers that are wrapped with `input_shape=(T,)` alone.
"""

import argparse
import re
import shlex
import sys
import warnings
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common import report

import multiexit as mx
from multiexit.backbones.graphs.tracing import Piece
from multiexit.runtime import evaluating

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "backbones"))


def wrapped(network: Any, **options: Any) -> tuple[Any, str]:
    """What `mx.wrap` makes of a network, or None; and what it says to it, without the help."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return mx.wrap(network, **options), ""
        except ValueError as error:
            text = re.sub("^can't (wrap|cut) .* by itself: ", "", str(error))
            return None, re.split(r"\. (Name parts|What works)", text)[0].replace("|", "¦")


def of_transformers() -> dict[str, list[dict[str, Any]]]:
    """How many families of each kind are wrapped, and which aren't and why."""
    from zoo import TOKENS, ZOO  # type: ignore[import-not-found]  # beside the tests

    reasons: dict[str, list[str]] = defaultdict(list)
    refused, at_one_length = [], Counter[str]()
    for entry in ZOO.values():
        network = entry.make()
        _, reason = wrapped(network)
        if "input_shape=(T,)" in reason:
            _, reason = wrapped(network, input_shape=(TOKENS,))
            at_one_length[entry.group] += not reason
        reasons[entry.group].append(reason)
        if reason:
            refused.append({"kind": entry.group, "family": entry.type, "reason": reason})
    totals = [
        {
            "kind": kind,
            "families": len(found),
            "wrapped": found.count(""),
            "at one length": at_one_length[kind],
        }
        for kind, found in reasons.items()
    ]
    return {"wrapped": totals, "refused": refused}


def of_vision() -> dict[str, list[dict[str, Any]]]:
    """How the networks of timm and torchvision are wrapped: one of each family, or all."""
    from vision_zoo import (  # type: ignore[import-not-found]  # beside the tests
        of_torchvision,
        torchvision_names,
        zoo,
    )

    rows = [vision_row(entry) for entry in zoo().values()]
    names = torchvision_names()
    classifiers = [vision_row(of_torchvision(name)) for name in names]
    totals = []
    for what, found in {
        "families of timm": [row for row in rows if row["library"] == "timm"],
        "families of torchvision": [row for row in rows if row["library"] == "torchvision"],
        "classifiers of torchvision": classifiers,
    }.items():
        number = sum(row["stages"] != "refused" for row in found)
        totals.append({"of": what, "networks": len(found), "wrapped": number})
    return {"shares": totals, "each-family": rows}


def vision_row(entry: Any) -> dict[str, Any]:
    """One network: its stages, the way to them, and how far it answers from its own forward."""
    network = entry.make()
    row = {"library": entry.library, "family": entry.family, "network": entry.name}
    backbone, reason = wrapped(network, input_shape=entry.input_shape)
    print(row, reason, flush=True)
    if backbone is None:
        return {**row, "stages": "refused", "way": reason, "difference": ""}
    x = torch.randn(2, *entry.input_shape)
    with evaluating(backbone, network, backbone.classifier), torch.no_grad():
        ours, theirs = backbone.classifier(backbone.features(x)[-1]), network(x)
    way = "graph cuts" if isinstance(backbone.stage_module(0), Piece) else "parts"
    difference = f"{(ours - theirs).abs().max().item():.3g}"
    return {**row, "stages": backbone.num_stages, "way": way, "difference": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("networks", nargs="?", choices=["transformers", "vision"])
    parser.add_argument("--output", help="a folder for JSON files")
    args = parser.parse_args()
    torch.manual_seed(0)
    is_vision = args.networks == "vision"
    note = ", ".join(f"{name} {version(name)}" for name in ("timm", "torchvision"))
    for name, rows in (of_vision() if is_vision else of_transformers()).items():
        output = args.output and str(Path(args.output) / f"{name}.json")
        report(rows, output, shlex.join(sys.argv), note if is_vision else "")


if __name__ == "__main__":
    main()
