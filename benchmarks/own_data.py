"""Time and memory that a large table of one's own takes, from the file to the first epoch's order.

    python benchmarks/own_data.py --output benchmarks/results/own_data.json

Each table is read twice in a process of its own: first with no tokens kept from before, then again.
Seconds are of the processor. *anonymous* is the most memory of its own that the process had beyond
what it had when its imports were done; *resident* counts pages of mapped files too, which the
system takes back as it needs them.
"""

import argparse
import csv
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from common import report

WORDS = 20_000


def words() -> list[str]:
    """Made-up words, of two to four syllables."""
    draw = random.Random(0)
    syllables = [c + v for c in "bcdfghjklmnprstvz" for v in "aeiou"]
    made: dict[str, None] = {}
    while len(made) < WORDS:
        made["".join(draw.choices(syllables, k=draw.randint(2, 4)))] = None
    return list(made)


def write_table(path: Path, rows: int) -> None:
    """A CSV of short texts, about 100 bytes a row, in five classes."""
    draw, known = random.Random(1), words()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(rows):
            text = " ".join(draw.choices(known, k=draw.randint(5, 22)))
            writer.writerow([text, draw.randint(1, 5)])


def tokenizer(folder: Path) -> Any:
    """BERT's kind, that knows a half of the words whole and the others by their letters."""
    from transformers import BertTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    vocabulary += [f"##{c}" for c in letters] + words()[: WORDS // 2]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    return BertTokenizer.from_pretrained(folder)


def status(key: str) -> float:
    """A line of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


class Watch:
    """The most anonymous memory of this process while it is watched, every 20 ms."""

    def __enter__(self) -> "Watch":
        self.most, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.most = max(self.most, status("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def measured(path: Path, folder: Path) -> dict[str, Any]:
    """One row of the table, of this process alone."""
    import datasets  # noqa: F401  (so that its import counts before)

    from multiexit.data import load
    from multiexit.data.training_set import TrainingSet

    reader = tokenizer(folder)
    load([{"text": "a", "label": n % 2} for n in range(10)], reader, notes=lambda _: None)
    before, before_all = status("RssAnon"), status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    seconds, tasks = [], []
    with Watch() as watch:
        for _ in range(2):
            start = time.process_time()
            tasks = [load(path, reader, notes=lambda _: None)]
            seconds.append(time.process_time() - start)
        start = time.process_time()
        train = TrainingSet(tasks[0].train, tasks[0].num_classes)
        train.epoch(0, 0, True, 32, 0, 1)
        order = time.process_time() - start
    kept = sum(file.stat().st_size for file in folder.rglob("tokens/**/*") if file.is_file())
    return {
        "rows": len(train) + len(tasks[0].sets["validation"]),  # type: ignore[arg-type]
        "file, MiB": path.stat().st_size / 2**20,
        "first, s": seconds[0],
        "again, s": seconds[1],
        "order, s": order,
        "anonymous, MiB": watch.most - before,
        "resident, MiB": status("VmHWM") - before_all,
        "tokens on disk, MiB": kept / 2**20,
    }


def main() -> None:
    """Measure every size, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--output")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(*map(Path, args.one))))
        return
    rows = []
    for count in args.rows:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name, "reviews.csv")
            write_table(path, count)
            done = subprocess.run(
                [sys.executable, __file__, "--one", str(path), name],
                env={**os.environ, "HOME": name},
                check=True,
                stdout=subprocess.PIPE,
            )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    report(rows, args.output, shlex.join(["benchmarks/own_data.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
