"""On a GPU: whether what holds on a CPU holds there, and what the engine and training cost.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --device cpu --output /tmp/gpu

Each check runs in a process of its own and leaves `OUTPUT/gpu-NAME.json` when it ends. A check
whose file is there is left out, so the program may be stopped at any time and gone on with; delete
a file to make it again. What fails is a row with the error's text, and the others go on; so does a
check that dies or takes longer than `LIMIT` seconds. On a CPU all is tiny: a trial of the program.

    predict          rows leave where `mx.simulate` says, with its logits; float32 and bfloat16
    spread           steps by DDP and FSDP2, in one process, equal those without
    engine-*         rows/s of the engine against the plain network
    compiled-*       the same compiled and with CUDA graphs, whose answers are those of `predict`
    training-*       a step of a recipe against plain fine-tuning, and the most memory it takes

Letters: M exits, B batch rows.
"""

import argparse
import gc
import os
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import report, seconds
from engine import Planned, plan
from torch import Tensor
from train_options import Cycle
from train_step import batch
from transformers import AutoModelForSequenceClassification, BertConfig

import multiexit as mx

OUTPUT = Path(__file__).parent / "results"
LIMIT = 110
CLOSE = {"float32": 1e-3, "bfloat16": 0.05}
"""How far logits may lie apart, as a share of the largest."""
Figures = dict[str, Any]
Row = tuple[Figures, Callable[[], Figures]]
"""What a row is of, and how its figures are got."""


@dataclass(frozen=True)
class Sizes:
    """How large everything is.

    Args:
        device: "cuda" or "cpu".
        bert: changes to BERT-base's shape.
        depth, image: of the ResNet, and of its images.
        tokens, batches: of what is asked.
        repeats: readings of each time.
        sentences, images: of a step of training.
    """

    device: str
    bert: dict[str, Any]
    depth: int
    image: int
    tokens: int
    batches: tuple[int, ...]
    repeats: int
    sentences: int
    images: int

    @property
    def compiler(self) -> dict[str, Any]:
        """What `torch.compile` is given: on CPUs no compiler is needed."""
        return {"backend": "eager"} if self.device == "cpu" else {}

    def backbone(self, kind: str) -> tuple[mx.Backbone, Any]:
        """A network with random weights, and of texts its own class of transformers."""
        torch.manual_seed(0)
        if kind == "text":
            plain = AutoModelForSequenceClassification.from_config(BertConfig(**self.bert)).eval()
            return mx.wrap(plain), plain
        return mx.cifar_resnet(self.depth, size=self.image), None

    def model(self, kind: str, dtype: str, few: bool = False) -> tuple[mx.MultiExitModel, Any]:
        """A network with exits, all or four, and the plain one of the same weights."""
        backbone, plain = self.backbone(kind)
        stages = backbone.num_stages
        exits = [stages * part // 4 - 1 for part in (1, 2, 3, 4)] if few else "all"
        model = mx.MultiExitModel(backbone, 2 if kind == "text" else 10, exits).eval()
        model.to(self.device, getattr(torch, dtype))
        for parameter in model.heads.parameters():
            parameter.data *= 8  # or random heads are as sure of every row
        if plain is None:
            return model, model.full
        return model, plain.to(self.device, getattr(torch, dtype))

    def inputs(self, kind: str, rows: int, dtype: str) -> dict[str, Any]:
        """Random rows."""
        if kind == "text":
            ids = torch.randint(1000, 20000, (rows, self.tokens), device=self.device)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        shape = (rows, 3, self.image, self.image)
        return {"x": torch.randn(shape, device=self.device, dtype=getattr(torch, dtype))}


FULL = Sizes("cuda", {}, 56, 32, 64, (1, 8, 32, 128), 5, 32, 128)
SMALL = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
TINY = Sizes("cpu", {**SMALL, "num_hidden_layers": 4}, 20, 8, 8, (1, 4), 1, 4, 4)
KINDS = ("text", "image")


@torch.inference_mode()
def half_leave(model: mx.MultiExitModel, inputs: dict[str, Any]) -> mx.MaxProb:
    """Thresholds by which about half of the rows may leave at each exit.

    Each lies in the widest gap between two rows' confidences in the middle half, so that rounding
    seldom says who leaves.
    """
    sure_MB = model(**inputs).float().softmax(-1).amax(-1).sort(1).values
    rows = sure_MB.shape[1]
    middle_MB = sure_MB[:, rows // 4 : rows - rows // 4]
    at_M1 = middle_MB.diff(dim=1).argmax(1, keepdim=True)
    between_M = (middle_MB.gather(1, at_M1) + middle_MB.gather(1, at_M1 + 1))[:, 0] / 2
    return mx.MaxProb(tuple(between_M[:-1].tolist()))


def compared(ours: mx.Prediction, theirs: mx.Prediction, dtype: str) -> Figures:
    """How many rows leave where they should, and how far their logits are apart."""
    same_B = ours.exit_B.cpu() == theirs.exit_B.cpu()
    apart_BC = (ours.logits_BC.float().cpu() - theirs.logits_BC.float().cpu())[same_B].abs()
    largest = float(theirs.logits_BC.abs().max())
    difference = float(apart_BC.max()) / largest if same_B.any() else float("nan")
    share = float(same_B.double().mean())
    enough = 1.0 if dtype == "float32" else 0.9
    good = share >= enough and difference <= CLOSE[dtype]
    return {"same exits": share, "difference": f"{difference:.1e}", "holds": told(good)}


def told(good: bool) -> str:
    return "yes" if good else "NO"


def check_predict(sizes: Sizes) -> Iterator[Row]:
    for kind in KINDS:
        for dtype in CLOSE:
            yield {"network": kind, "dtype": dtype}, partial(_predict, sizes, kind, dtype)


def _predict(sizes: Sizes, kind: str, dtype: str) -> Figures:
    torch.backends.cudnn.allow_tf32 = False  # which is no float32
    model, _ = sizes.model(kind, dtype)
    inputs = sizes.inputs(kind, sizes.batches[-1], dtype)
    policy = half_leave(model, inputs)
    with torch.inference_mode():
        logits_MBC = model(**inputs).float().cpu()
    exit_B = mx.simulate(policy, logits_MBC)
    at_exit_BC = logits_MBC[exit_B, torch.arange(len(exit_B))]
    answer = model.predict(policy, **inputs)
    return {"rows": len(exit_B), **compared(answer, mx.Prediction(at_exit_BC, exit_B), dtype)}


def check_spread(sizes: Sizes) -> Iterator[Row]:
    for way, kinds in (("DDP", KINDS), ("FSDP2", KINDS[:1])):  # which takes no BatchNorm in bf16
        for kind in kinds:
            for precision in ("no", "bf16"):
                of = {"way": way, "network": kind, "precision": precision}
                yield of, partial(_spread, sizes, kind, precision, way)


def _spread(sizes: Sizes, kind: str, precision: Any, way: str) -> Figures:
    """A cycle of LeeBERT's steps in one process, spread over itself, against the same without.

    "difference" is the largest of a parameter, as a share of how far the farthest one moved.
    """
    from multiexit.training import accelerator, sharding
    from multiexit.training.stepper import Stepper

    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    config = mx.TrainConfig(
        mixed_precision=precision, progress=False, lr=1e-3, omega_lr=1e-3, optimizer="sgd"
    )

    def trained(environment: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
        _begin_anew(environment)
        made = accelerator.accelerator(config)
        if way == "FSDP2" and environment and sizes.device == "cpu":
            _as_fsdp2(made)
        backbone, _ = sizes.backbone(kind)
        model = mx.MultiExitModel(backbone, 2).to(made.device)
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        start = sharding.parameters(model)
        torch.manual_seed(1)
        batches = [batch(backbone, sizes.sentences, sizes.tokens) for _ in range(5)]
        stepper = Stepper(model, mx.recipes.leebert().phases[0], config, made)
        for step in range(4):
            stepper.step([batches[step]], lambda: [batches[4]], step, 100)
        return start, sharding.parameters(stepper.model), stepper

    def farthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        return max(float((one[name] - other[name]).abs().max()) for name in learned)

    start, plain, alone = trained({})
    learned = [name for name, _ in alone.model.named_parameters()]
    _, ours, stepper = trained(launched(way))
    module = type(stepper.model if way == "FSDP2" else stepper._wrapped).__name__
    apart = farthest(ours, plain) / farthest(plain, start)
    spread = stepper.accelerator.is_fsdp2 if way == "FSDP2" else "DistributedData" in module
    good = spread and apart <= CLOSE["float32" if precision == "no" else "bfloat16"]
    return {"module": module, "difference": f"{apart:.1e}", "holds": told(good)}


def launched(way: str) -> dict[str, str]:
    """The environment of a launcher's only process."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = str(held.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    place |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    sharded = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    }
    return place | (sharded if way == "FSDP2" else {})


def _begin_anew(environment: dict[str, str]) -> None:
    """Begin anew with accelerate, in an environment that has of a launcher this alone."""
    from accelerate.state import AcceleratorState

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in launched("FSDP2"):
        os.environ.pop(name, None)
    os.environ |= environment
    AcceleratorState._reset_state(True)


def _as_fsdp2(accelerator: Any) -> None:
    """What accelerate does on GPUs alone."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap"
    )


def check_engine(kind: str, sizes: Sizes) -> Iterator[Row]:
    for dtype in CLOSE:
        for rows in sizes.batches:
            yield {"dtype": dtype, "batch": rows}, partial(_engine, sizes, kind, dtype, rows)


def _engine(sizes: Sizes, kind: str, dtype: str, rows: int) -> Figures:
    model, plain = sizes.model(kind, dtype)
    inputs, M = sizes.inputs(kind, rows, dtype), model.num_exits
    powers = [1 << power for power in range(rows.bit_length())]
    table = mx.profile(model, inputs=inputs, batch_sizes=powers, repeats=1)
    spread = [M // 2] if rows == 1 else plan("uniform", rows, M)
    last, uniform = (
        mx.Engine(model, Planned(tuple(exits)), latency=table) for exits in ([M - 1] * rows, spread)
    )
    calls = [of_plain(plain, inputs), *(partial(e.predict, **inputs) for e in (last, uniform))]
    whole, none, early = seconds(calls, sizes.repeats)
    layers = sum(model.exits[exit] + 1 for exit in spread)
    return {
        "plain, rows/s": round(rows / whole),
        "nobody leaves early, rows/s": round(rows / none),
        "uniform, rows/s": round(rows / early),
        "none ÷ plain": whole / none,
        "uniform ÷ plain": whole / early,
        "ideal": (model.exits[-1] + 1) * rows / layers,
    }


def of_plain(plain: Any, inputs: dict[str, Any]) -> Callable[[], Any]:
    """The plain network's call."""

    def call() -> None:
        with torch.inference_mode():
            plain(**inputs)

    return call


def check_compiled(kind: str, sizes: Sizes) -> Iterator[Row]:
    modes: tuple[Any, ...] = (True, "reduce-overhead") if sizes.device == "cuda" else (True,)
    for rows in (1, min(32, sizes.batches[-1])):
        for mode in modes:
            way = "CUDA graphs" if mode == "reduce-overhead" else "compiled"
            yield {"way": way, "batch": rows}, partial(_compiled, sizes, kind, rows, mode)


def _compiled(sizes: Sizes, kind: str, rows: int, mode: Any) -> Figures:
    dtype = "bfloat16" if kind == "text" else "float32"
    torch.backends.cudnn.allow_tf32 = False
    model, plain = sizes.model(kind, dtype, few=True)
    many = sizes.inputs(kind, 32, dtype)
    policy, inputs = half_leave(model, many), {name: x[:rows] for name, x in many.items()}
    with patch.object(torch, "compile", partial(torch.compile, **sizes.compiler)):
        engine = mx.Engine(model, policy, compile=mode)
    begin = time.perf_counter()
    answer = engine.predict(**inputs)
    took = time.perf_counter() - begin
    eager = mx.Engine(model, policy)
    found = compared(answer, eager.predict(**inputs), dtype)
    calls = [of_plain(plain, inputs), *(partial(e.predict, **inputs) for e in (eager, engine))]
    whole, slow, fast = seconds(calls, sizes.repeats)
    speeds = {"plain ÷ engine": whole / slow, "engine ÷ compiled": slow / fast}
    return {"dtype": dtype, **found, "first call, s": took, **speeds}


OPTIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bf16": {"mixed_precision": "bf16"},
    "bf16, compiled": {"mixed_precision": "bf16", "compile": True},
}


def check_training(kind: str, sizes: Sizes) -> Iterator[Row]:
    for option in OPTIONS if sizes.device == "cuda" else ["bf16"]:
        plain: list[Cycle] = []
        for recipe in ("plain", "leebert", "joint"):
            of = {"option": option, "recipe": recipe}
            yield of, partial(_training, sizes, kind, option, recipe, plain)


def _training(sizes: Sizes, kind: str, option: str, name: str, plain: list[Cycle]) -> Figures:
    """A step's time in turn with the plain network's, the first of these rows."""
    cuda, before = sizes.device == "cuda", 0
    if cuda:
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    args = argparse.Namespace(sentences=sizes.sentences, images=sizes.images, tokens=sizes.tokens)
    backbone, _ = sizes.backbone(kind)
    recipe = mx.recipe("joint" if name == "plain" else name)
    exits: Any = [backbone.num_stages - 1] if name == "plain" else "all"
    with patch.object(torch, "compile", partial(torch.compile, **sizes.compiler)):
        cycle = Cycle(backbone, OPTIONS[option], args, recipe, exits)
    cycle()
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30 if cuda else "–"
    if name == "plain":
        plain.append(cycle)
    step, *whole = (took / 4 for took in seconds([cycle, *plain], sizes.repeats))
    return {
        "step, ms": 1e3 * step,
        "rows/s": round(cycle.rows / step),
        "÷ plain": step / whole[0] if whole else "–",
        "most memory, GiB": peak,
    }


CHECKS: dict[str, Callable[[Sizes], Iterator[Row]]] = {
    "predict": check_predict,
    "spread": check_spread,
    **{f"engine-{kind}": partial(check_engine, kind) for kind in KINDS},
    **{f"training-{kind}": partial(check_training, kind) for kind in KINDS},
    **{f"compiled-{kind}": partial(check_compiled, kind) for kind in KINDS},
}


def failure(error: BaseException) -> Figures:
    """A row's figures where it fails."""
    return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]}


def work(name: str, sizes: Sizes, send: Any) -> None:
    """All rows of a check, sent as they come."""
    if sizes.device == "cpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    try:
        for of, figures in CHECKS[name](sizes):
            torch.manual_seed(0)
            try:
                row = figures()
            except Exception as error:
                row = failure(error)
            send.send({**of, **row})
    except Exception as error:
        send.send(failure(error))


def rows_of(name: str, sizes: Sizes) -> list[Figures]:
    """A check's rows, from a process of its own; what CUDA has begun can't be forked."""
    context: Any = get_context("spawn" if sizes.device == "cuda" else "fork")
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=work, args=(name, sizes, send))
    child.start()
    send.close()
    rows: list[Figures] = []
    end = time.monotonic() + LIMIT
    try:
        while receive.poll(max(0.0, end - time.monotonic())):
            rows.append(receive.recv())
        rows.append({"failed": f"took longer than {LIMIT} s"})
        child.kill()
    except EOFError:
        child.join()
        if child.exitcode:
            rows.append({"failed": f"the process ended with {child.exitcode}"})
    child.join()
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is at hand: --device cpu is a trial run of all checks")
    if args.device == "cpu" and args.output == OUTPUT:
        parser.error("a trial on a CPU is no result: give another --output")
    sizes = FULL if args.device == "cuda" else TINY
    for name in args.only:
        path = args.output / f"gpu-{name}.json"
        if path.exists():
            print(f"{name}: there", flush=True)
            continue
        begin = time.monotonic()
        rows = rows_of(name, sizes)
        parts = ["benchmarks/gpu.py", "--only", name]
        parts += ["--device", "cpu"] if args.device == "cpu" else []
        columns = list(dict.fromkeys(key for row in rows for key in row))
        full = [{key: row.get(key, "") for key in columns} for row in rows]
        note = f"{time.monotonic() - begin:.0f} s in all."
        report(full, str(path), shlex.join(parts), note)
        print(f"{name}: {note}\n", flush=True)


if __name__ == "__main__":
    main()
