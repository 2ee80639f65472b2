"""Rows that can't be used: named together, or set aside in a file."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multiexit.files import schema
from multiexit.files.writing import write

OR_SKIP = ", or go on without them by skip_bad"
"""How a refusal ends, but of a command that has no such option."""

KINDS = 4
"""Reasons that are counted in a message, at most."""


@dataclass
class BadRows:
    """Collects rows that can't be used, with the reason.

    Args:
        aside: where they are written as JSON lines while the others go on; None refuses them.
    """

    aside: Path | None = None
    found: list[dict[str, Any]] = field(default_factory=list)

    def add(self, place: str, reason: str, value: Any) -> None:
        """Note a row.

        Args:
            place: its file and line.
            reason: what is wrong with it.
            value: that is wrong.
        """
        self.found.append({"place": place, "reason": reason, "value": value})

    def settle(self) -> str | None:
        """Write the rows aside, and say so; nothing where there are none.

        Raises:
            ValueError: they are to be refused: the first one, and how many there are of each kind.
        """
        if not self.found:
            return None
        first = self.found[0]
        place, value = first["place"], first["value"]
        is_place = isinstance(value, str) and value == place  # a file by itself
        example = f"{place}: {first['reason']}" + ("" if is_place else f", {schema.short(value)}")
        count = len(self.found)
        kinds = self._kinds()
        if self.aside is None:
            such = "rows" if kinds else "such rows"
            more = "" if count == 1 else f"; {count} {such} in all{kinds}"
            raise ValueError(f"{example}{more}. Mend them{OR_SKIP}")
        lines = "".join(
            json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in self.found
        )
        self.aside.parent.mkdir(parents=True, exist_ok=True)
        write(self.aside, lambda path: path.write_text(lines, encoding="utf-8"))
        return f"{count} rows left out{kinds}, written to {self.aside}; the first: {example}"

    def _kinds(self) -> str:
        """How many rows there are of each kind, in brackets; nothing where all are of one."""
        kinds = Counter(re.split(r" \(|: ", row["reason"])[0] for row in self.found).most_common()
        if len(kinds) == 1:
            return ""
        shown = [f"{reason}: {count}" for reason, count in kinds[:KINDS]]
        others = sum(count for _, count in kinds[KINDS:])
        return f" ({', '.join([*shown, *[f'others: {others}'] * bool(others)])})"
