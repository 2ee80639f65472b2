"""Which families of transformers `mx.wrap` takes, on tiny random networks of each: the tests' zoo.

python benchmarks/families.py --output docs/results/families
"""

import argparse
import re
import shlex
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

from common import report

import multiexit as mx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "backbones"))


def reason_to_refuse(network: Any) -> str:
    """What `mx.wrap` says to a network, without the name before and the help behind; or nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            mx.wrap(network)
        except ValueError as error:
            text = re.sub("^can't wrap .* by itself: ", "", str(error))
            return text.partition(". Name parts")[0].replace("|", "¦")
    return ""


def main() -> None:
    from zoo import ZOO  # type: ignore[import-not-found]  # beside the tests

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", help="a folder for JSON files")
    args = parser.parse_args()
    reasons: dict[str, list[str]] = defaultdict(list)
    refused = []
    for entry in ZOO.values():
        reason = reason_to_refuse(entry.make())
        reasons[entry.group].append(reason)
        if reason:
            refused.append({"kind": entry.group, "family": entry.type, "reason": reason})
    totals = [
        {"kind": kind, "families": len(found), "wrapped": found.count("")}
        for kind, found in reasons.items()
    ]
    for name, rows in {"wrapped": totals, "refused": refused}.items():
        output = args.output and str(Path(args.output) / f"{name}.json")
        report(rows, output, shlex.join(sys.argv))


if __name__ == "__main__":
    main()
