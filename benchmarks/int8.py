"""int8 graphs beside float ones: how near their logits are, processor time, and size.

    python benchmarks/int8.py --output benchmarks/results/int8.json

A BERT with random weights has an exit after each layer, a CIFAR ResNet-56 seven, and no row leaves
early. *correlation* is of the logits with the model's, the least over the exits. Milliseconds are
of the processor, the best of several calls, all kinds in turn. "one scale a batch" is
onnxruntime's own dynamic quantisation of the float graphs of linear layers. Scales of convolutions
come from 256 rows like those that are asked.
"""

import argparse
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from common import report
from onnxruntime.quantization import quantize_dynamic
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from transformers import BertConfig, BertModel

import multiexit as mx
from multiexit_runner import Runner
from multiexit_runner.folder import seal

Batch = dict[str, Any]  # of arrays
VOCABULARY, TOKENS = 5000, 24
CALIBRATING = 256  # rows
NEVER = mx.MaxProb(1.01)


def text(layers: int, width: int) -> mx.MultiExitModel:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        intermediate_size=4 * width,
    )
    return mx.MultiExitModel(mx.wrap(BertModel(config)), num_classes=8).eval()


def tokens(rows: int) -> Batch:
    ids = np.random.default_rng(rows).integers(5, VOCABULARY, (rows, TOKENS))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": 0 * ids}


def image() -> mx.MultiExitModel:
    model = mx.MultiExitModel(mx.cifar_resnet(56), 10, [3, 7, 11, 15, 19, 23, 26])
    with torch.no_grad():
        for seed in range(30):  # so that its batch norms know their statistics
            model(torch.from_numpy(pixels(64, seed)["x"]))
    return model.eval()


def pixels(rows: int, seed: int = 0) -> Batch:
    """Smooth noise of mean 0 and deviation 1, since white noise looks alike to a convolution."""
    generator = torch.Generator().manual_seed(1000 * seed + rows)
    coarse = torch.randn(rows, 3, 8, 8, generator=generator)
    fine = F.interpolate(coarse, size=32, mode="bicubic")
    return {"x": (fine / fine.std()).numpy()}


def quantise_by_batch(folder: Path, into: Path) -> None:
    """A copy of an export whose graphs are onnxruntime's own int8."""
    shutil.copytree(folder, into)
    for path in folder.glob("*.onnx"):
        quantize_dynamic(path, into / path.name)
    seal(into)


def correlation(runner: Runner, model: mx.MultiExitModel, inputs: Batch) -> float:
    """Of logits with the model's, the least over the exits."""
    with torch.inference_mode():
        wanted = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()
    got = runner.forward(**inputs)
    return min(
        float(np.corrcoef(g.ravel(), w.ravel())[0, 1]) for g, w in zip(got, wanted, strict=True)
    )


def best_ms(runners: list[Runner], inputs: Batch, repeats: int) -> list[float]:
    """Milliseconds of the processor that each takes, the best of several calls in turn."""
    best = [float("inf")] * len(runners)
    for _ in range(repeats + 1):
        for place, runner in enumerate(runners):
            began = time.process_time()
            runner.predict(**inputs)
            best[place] = min(best[place], 1000 * (time.process_time() - began))
    return best


def compared(
    name: str, model: mx.MultiExitModel, make: Callable[[int], Batch], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row of the table for each kind of graphs."""
    arrays = make(CALIBRATING)
    like = TensorDataset(*map(torch.from_numpy, arrays.values())) if "x" in arrays else None
    with tempfile.TemporaryDirectory() as made:
        kinds = {"float": Path(made) / "float"}
        mx.export(model, kinds["float"], NEVER)
        for target in args.targets:
            kinds[f"int8, {target}"] = Path(made) / target
            mx.export(
                model,
                kinds[f"int8, {target}"],
                NEVER,
                rows=like,
                int8=True,
                target=target,
                agreement=0.5,
            )
        if like is None:
            kinds["int8, one scale a batch"] = Path(made) / "by batch"
            quantise_by_batch(kinds["float"], kinds["int8, one scale a batch"])
        runners = [Runner(folder, threads=1, check=False) for folder in kinds.values()]
        many, one = best_ms(runners, make(32), args.repeats), best_ms(runners, make(1), 100)
        return [
            {
                "network": name,
                "graphs": kind,
                "correlation": f"{correlation(runner, model, make(255)):.5f}",
                "32 rows, ms": f"{many_ms:.1f}",
                "1 row, ms": f"{one_ms:.2f}",
                "MB": f"{sum(path.stat().st_size for path in folder.glob('*.onnx')) / 1e6:.1f}",
            }
            for (kind, folder), runner, many_ms, one_ms in zip(
                kinds.items(), runners, many, one, strict=True
            )
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--targets", nargs="*", default=["auto", "vnni"])
    parser.add_argument("--output")
    args = parser.parse_args()
    torch.manual_seed(0)
    name = f"BERT, {args.layers} layers of {args.width}, {TOKENS} tokens"
    rows = compared(name, text(args.layers, args.width), tokens, args)
    rows += compared("ResNet-56, 7 exits", image(), pixels, args)
    note = f"Random weights; onnxruntime {onnxruntime.__version__}."
    report(rows, args.output, shlex.join(["benchmarks/int8.py", *sys.argv[1:]]), note)


if __name__ == "__main__":
    main()
