"""From texts to labels: sentence-transformers' backends without exits, and ours with and without.

    python -m venv theirs && theirs/bin/pip install sentence-transformers[onnx,openvino]
    multiexit train --task sst2 --backbone MiniLM-L6 --pool mean … --output runs/sst2
    python benchmarks/backends.py runs/sst2/model --task sst2 --data-dir data \
        --theirs theirs/bin/python --work made

All run one encoder: the trained one. Theirs has the last exit's head behind it, and runs in a
process of its own, which waits while ours are timed. Ours stop by max p at a few thresholds, given
beforehand; accuracy is of the development set.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from common import report

import multiexit as mx
import multiexit_runner
from multiexit.backbones.truncation.transformers_form import transformers_form
from multiexit.cli import typed
from multiexit.data.glue_files import folder_source
from multiexit.data.glue_tasks import find_task

Say = Callable[[list[str], int], tuple[list[Any], float]]
"""Labels of texts at a batch size, and the seconds that the processor spent on them."""

NEVER = mx.MaxProb(1.01)
CALIBRATION_ROWS = 300  # as sentence-transformers takes


def classifier(classify: Any, policy: Any = None) -> Say:
    """A classifier of ours, at a policy; alone, each text is a call."""

    def say(texts: list[str], batch: int) -> tuple[list[Any], float]:
        began = time.process_time()
        if batch == 1:
            answers = [classify(text, policy=policy, top_k=1) for text in texts]
        else:
            answers = classify(texts, policy=policy, top_k=1, batch_size=batch)
        return [answer["label"] for answer in answers], time.process_time() - began

    return say


class Theirs:
    """The other process, asked by lines of JSON."""

    def __init__(self, python: str, folder: Path):
        script = Path(__file__).with_name("backends_theirs.py")
        words = [python, str(script), str(folder)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.names: list[str] = self._line()

    def say(self, what: str, texts: list[str], batch: int) -> tuple[list[Any], float]:
        assert self.process.stdin is not None
        asked = {"what": what, "rows": len(texts), "batch": batch}
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        return self._line()

    def _line(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ValueError("the process of sentence-transformers ended: see above")
        return json.loads(line)


def write_theirs(
    model: mx.MultiExitModel, tokenizer: Any, train: Any, dev: Any, folder: Path
) -> None:
    """The encoder, the last exit's head, and the texts, for the other process."""
    folder.mkdir(parents=True, exist_ok=True)
    form = transformers_form(model.backbone, model.exits[-1] + 1, 2, None, model.problem)
    form.network.base_model.save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    head: Any = model.heads[-1]
    weights = {name: tensor.numpy() for name, tensor in head.state_dict().items()}
    np.savez(folder / "head.npz", allow_pickle=False, **weights)
    (folder / "texts.json").write_text(json.dumps(dev.texts), encoding="utf-8")
    (folder / "rows").mkdir(exist_ok=True)
    with (folder / "rows" / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence"])
        writer.writerows([text] for text in train.texts[:CALIBRATION_ROWS])


def ours(model: mx.MultiExitModel, tokenizer: Any, args: Any) -> dict[str, Say]:
    """By name: what is one step further than the line before, without exits and with them."""
    whole = mx.keep_exits(model, [model.num_exits - 1]).eval()
    last = mx.FixedExit(model.num_exits - 1)
    classify = mx.Classifier(model, tokenizer, last)
    say = {"torch, no exits": classifier(classify, last)}
    say |= at_thresholds("torch", classify, args.max_prob)
    folder = args.work
    for kind, int8 in (("float", {}), ("int8", {"int8": True, "target": args.target})):
        if not (folder / kind).exists():
            mx.export(whole, folder / f"{kind} whole", mx.FixedExit(0), tokenizer=tokenizer, **int8)
            mx.export(model, folder / kind, NEVER, tokenizer=tokenizer, **int8)
    backends = {"onnxruntime": "ONNX", "openvino": "OpenVINO"}
    if has_bfloat16():  # in which OpenVINO runs, unless it is told not to
        backends["openvino-bf16"] = "OpenVINO bf16"
    for backend, name in backends.items():
        for kind in ("float", "int8"):
            called = name + " int8" * (kind == "int8")
            load = partial(multiexit_runner.Classifier.from_pretrained, backend=backend)
            try:
                no_exits, exits = load(folder / f"{kind} whole"), load(folder / kind)
            except ValueError as error:  # bfloat16 may round too much
                print(f"{called}: {error}", file=sys.stderr)
                continue
            say[f"{called}, no exits"] = classifier(no_exits)
            say |= at_thresholds(called, exits, args.max_prob)
    return say


def at_thresholds(name: str, classify: Any, thresholds: list[float]) -> dict[str, Say]:
    """A classifier that stops by max p at each of these."""
    return {f"{name}, p ≥ {p:g}": classifier(classify, f"max-prob={p:g}") for p in thresholds}


def has_bfloat16() -> bool:
    """Whether OpenVINO finds bfloat16 in this CPU."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def timed(
    say: dict[str, Say], texts: list[str], batch: int, repeats: int
) -> dict[str, tuple[float, float]]:
    """Median seconds of each, on the clock and of the processor; they run in turn."""
    readings: dict[str, list[tuple[float, float]]] = {what: [] for what in say}
    for repeat in range(repeats + 1):
        for what, each in say.items():
            began = time.perf_counter()
            _, spent = each(texts, batch)
            if repeat:  # the first warms up
                readings[what].append((time.perf_counter() - began, spent))
    return {
        what: (median(clock for clock, _ in kept), median(spent for _, spent in kept))
        for what, kept in readings.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--task", default="sst2")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--theirs", required=True, help="a Python with sentence-transformers")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made once")
    parser.add_argument("--target", default="auto", help="of our int8")
    parser.add_argument("--max-prob", type=float, nargs="+", default=[0.9, 0.925, 0.95])
    parser.add_argument("--alone", type=int, default=200, help="texts that are timed one by one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output")
    args = parser.parse_args()
    model = mx.MultiExitModel.from_pretrained(args.model).eval()
    tokenizer = typed.tokenizer(args.model)
    source = folder_source(find_task(args.task), args.data_dir)
    train, dev = source("train"), source("validation")
    with ExitStack() as stack:
        write_theirs(model, tokenizer, train, dev, args.work)
        theirs = Theirs(args.theirs, args.work)
        stack.callback(theirs.process.kill)
        say: dict[str, Say] = {
            f"sentence-transformers, {what}": partial(theirs.say, what) for what in theirs.names
        }
        say |= ours(model, tokenizer, args)
        names = {label: number for number, label in enumerate(model.labels or range(2))}
        right = {
            what: np.mean([names.get(a, a) for a in each(dev.texts, 32)[0]] == np.array(dev.labels))
            for what, each in say.items()
        }
        rows: list[dict[str, Any]] = []
        for batch, texts in ((1, dev.texts[: args.alone]), (32, dev.texts)):
            spent = timed(say, texts, batch, args.repeats)
            best = [
                min(spent[what][clock] for what in say if what.startswith("sentence-"))
                for clock in (0, 1)
            ]
            for what, (clock, processor) in spent.items():
                rows.append(
                    {
                        "batch": batch,
                        "what": what,
                        "texts/s": f"{len(texts) / clock:.1f}",
                        "÷ their best": best[0] / clock,
                        "processor ms/text": f"{1000 * processor / len(texts):.2f}",
                        "their best ÷": best[1] / processor,
                        "accuracy": f"{100 * right[what]:.1f}",
                    }
                )
    report(rows, args.output, shlex.join(["benchmarks/backends.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
