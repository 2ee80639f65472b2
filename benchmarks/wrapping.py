"""Seconds and memory that `mx.wrap` takes for networks of usual sizes, with random weights.

    python benchmarks/wrapping.py --output benchmarks/results/wrapping.json

Each network is wrapped in a process of its own, 3 times. *own run* is its forward on two rows; both
times are medians. *memory* is the most that was in use while it was wrapped, beyond
what was before, in MiB and as a share of the network's own.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import report
from torch import Tensor, nn


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig())


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    return GPT2ForSequenceClassification(GPT2Config(pad_token_id=50256))


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig())


def from_timm(name: str) -> nn.Module:
    import timm

    return timm.create_model(name)


def from_torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model

    return get_model(name)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "BERT-base (transformers)": bert,
    "GPT-2 small (transformers)": gpt2,
    "ViT-B/16 (transformers)": vit,
    "ViT-B/16 (timm)": lambda: from_timm("vit_base_patch16_224"),
    "ResNet-50 (timm)": lambda: from_timm("resnet50"),
    "ResNet-50 (torchvision)": lambda: from_torchvision("resnet50"),
}


def most_memory() -> float:
    """The most MiB that this process has had in use since `clear_refs` was written."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measured(name: str) -> dict[str, Any]:
    """One row of the table, of this process alone."""
    import multiexit as mx

    warnings.simplefilter("ignore")
    network = NETWORKS[name]().eval()
    inputs: dict[str, Tensor] = mx.wrap(network).example_inputs(2)  # imports and caches are there
    inputs = {
        key: x[:, :9] if key.startswith(("input_ids", "att")) else x for key, x in inputs.items()
    }
    own = []
    for _ in range(3):
        begin = time.perf_counter()
        with torch.no_grad():
            network(**inputs) if "x" not in inputs else network(inputs["x"])
        own.append(time.perf_counter() - begin)
    seconds, memory = [], []
    for _ in range(3):
        Path("/proc/self/clear_refs").write_text("5")
        before, begin = most_memory(), time.perf_counter()
        mx.wrap(network)
        seconds.append(time.perf_counter() - begin)
        memory.append(most_memory() - before)
    size = sum(p.numel() * p.element_size() for p in network.parameters()) / 2**20
    return {
        "network": name,
        "MiB": round(size),
        "own run, s": median(own),
        "seconds": median(seconds),
        "memory, MiB": round(median(memory)),
        "memory, share": median(memory) / size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output", help="a JSON file")
    parser.add_argument("--only", choices=NETWORKS, help="measure this one here, print its row")
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measured(args.only)))
        return
    rows = []
    for name in NETWORKS:
        command = [sys.executable, __file__, "--only", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    report(rows, args.output, shlex.join(sys.argv))


if __name__ == "__main__":
    main()
