"""What families of networks that `mx.wrap` takes are good for: costs, training, export, cutting.

    python benchmarks/family_uses.py --output docs/results/families

Every network of the tests' zoos, each in a process of its own. *MACs*: of one row, in `cost()`.
*trained*: by LeeBERT, two steps; the largest difference between the losses with and without
`checkpoint_gradients`. *two processes*: between those in two, by DDP, and in one; no dropout;
of losses above 1 their share.
*recipes*: of those for classes, how many train, with the heads they ask for or linear ones.
*compiled*: an engine's logits and the loss of a joint step, without dropout, with and without
`compile`, by all of `torch.compile` but the making of machine code; of logits above 1 their share;
with `--compiler inductor` by all of it, which networks need whose views `aot_eager` gets wrong.
*exported*: to ONNX, with two exits; the largest difference between the graphs' logits and the
model's own. *truncated*: cut behind either exit, saved and loaded where a library's class computes
the same; the largest difference from the exit's logits. What is refused has the sentence in place
of a number. What `zoo.json` has already isn't measured again, but for the families that `--only`
names.
"""

import argparse
import contextlib
import gc
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import save, saved
from forked_pair import in_two_processes
from torch import Tensor, nn
from torch.utils.data import Dataset

import multiexit as mx
from multiexit.files.unreadable import one_line
from multiexit.model.truncation import save_network
from multiexit.training import stepper

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "backbones"))

CLASSES, ROWS, SECONDS = 3, 8, 400


class Rows(Dataset[Any]):
    """Rows of a network's own kind, with labels."""

    def __init__(self, inputs: Mapping[str, Tensor]):
        self.inputs = inputs

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {**{k: v[row] for k, v in self.inputs.items()}, "labels": row % CLASSES}


def made(key: str) -> tuple[mx.MultiExitModel, dict[str, Tensor]] | None:
    """A model of two exits that disagree, and rows for it; None where the network is refused."""
    from vision_zoo import zoo  # type: ignore[import-not-found]  # beside the tests
    from zoo import ONE_LENGTH, TOKENS, ZOO  # type: ignore[import-not-found]

    torch.manual_seed(0)
    entry: Any = ZOO[key] if key in ZOO else zoo()[key]
    length = (TOKENS,) if key in ONE_LENGTH else None
    shape = length if key in ZOO else entry.input_shape
    try:
        backbone = mx.wrap(entry.make(), input_shape=shape)
    except ValueError:
        return None
    last = backbone.num_stages - 1
    model = mx.MultiExitModel(backbone, CLASSES, sorted({last // 2, last})).eval()
    for parameter in model.heads.parameters():
        nn.init.normal_(parameter, std=0.5)
    inputs = entry.inputs(ROWS, 0) if key in ZOO else {"x": torch.randn(ROWS, *entry.input_shape)}
    return model, inputs


def counted(model: mx.MultiExitModel, inputs: dict[str, Tensor]) -> str:
    """MACs of one row, as `cost()` counts them by itself."""
    return f"{model.cost().full_macs:.3g}"


def shared(model: mx.MultiExitModel, inputs: dict[str, Tensor]) -> str:
    """How far losses of two steps in two processes differ from those in one, of as many rows."""

    def losses(batch_size: int) -> list[float]:
        config = mx.TrainConfig(
            log_every=1,
            progress=False,
            max_steps=2,
            batch_size=batch_size,
            optimizer="sgd",
            lr=0.05,
            clip=1.0,
        )
        with patch.object(stepper, "train_mode", nn.Module.eval):  # draws are each process's own
            history = mx.Trainer(model, mx.recipe("leebert", cycle=1), config).fit(Rows(inputs))
        return [step["loss"] for step in history.steps]

    # In this order: a process that has differentiated can't be forked.
    two, one = in_two_processes(lambda: losses(2)), losses(4)
    if len(one) != len(two):
        raise AssertionError(f"{len(two)} steps in place of {len(one)}")
    gap = (torch.tensor(one) - torch.tensor(two)).abs() / torch.tensor(one).abs().clamp(1)
    return f"{gap.max().item():.1g}"


def recipes(model: mx.MultiExitModel, inputs: dict[str, Tensor]) -> str:
    """How many recipes train, two steps a phase; those whose heads don't fit are left out."""
    start = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    config = mx.TrainConfig(log_every=1, progress=False, max_steps=2, batch_size=4)
    names = [k for k in mx.recipes.RECIPES if "decisions" in mx.recipe(k).policy.reads]
    done = 0
    for name in names:
        recipe = mx.recipe(name, **({"speedup": 1.01} if name == "msdnet" else {}))
        model.backbone.load_state_dict(start)
        fitting = with_heads(model, recipe.head)
        if fitting is None:
            continue
        before = [p.detach().clone() for p in fitting.heads.parameters()]
        dev = None if recipe.finish is None else Rows(inputs)
        history = mx.Trainer(fitting, recipe, config).fit(Rows(inputs), dev)
        losses = torch.tensor([step["loss"] for step in history.steps])
        moved = [
            not torch.equal(a, b) for a, b in zip(before, fitting.heads.parameters(), strict=True)
        ]
        if len(losses) != 2 * len(recipe.phases) or not losses.isfinite().all() or not any(moved):
            raise AssertionError(f"{name}: losses {losses.tolist()}")
        done += 1
    return str(done)


def with_heads(model: mx.MultiExitModel, head: Any) -> mx.MultiExitModel | None:
    """Fresh heads of a recipe's kind, or linear where those are for other features."""
    linear = "linear" + "+".join(["", *str(head).split("+")[1:]])
    for name in (head, linear):
        with contextlib.suppress(ValueError):
            return mx.MultiExitModel(model.backbone, CLASSES, model.exits, name)
    return None


def losses_differ(
    model: mx.MultiExitModel, inputs: dict[str, Tensor], recipe: mx.Recipe, steps: int, setting: str
) -> float:
    """The largest difference between losses of some steps with and without a setting."""
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = []
    for chosen in (False, True):
        model.load_state_dict(start)
        given: dict[str, Any] = {"max_steps": steps, "batch_size": 4, setting: chosen}
        config = mx.TrainConfig(log_every=1, progress=False, **given)
        history = mx.Trainer(model, recipe, config).fit(Rows(inputs))
        losses.append(torch.tensor([step["loss"] for step in history.steps]))
    if len(losses[0]) != steps or not losses[0].isfinite().all():
        raise AssertionError(f"losses {losses[0].tolist()}")
    return (losses[0] - losses[1]).abs().max().item()


def trained(model: mx.MultiExitModel, inputs: dict[str, Tensor]) -> str:
    """How far losses differ with and without `checkpoint_gradients`."""
    recipe = mx.recipe("leebert", cycle=1)
    return f"{losses_differ(model, inputs, recipe, 2, 'checkpoint_gradients'):.2g}"


def compiled(model: mx.MultiExitModel, inputs: dict[str, Tensor]) -> str:
    """How far an engine's logits and the loss of a joint step differ with and without `compile`."""
    policy, some = half_leave(model, inputs), dict[str, Any](inputs)
    engine = mx.Engine(model, policy, compile=True)
    wanted, found = model.predict(policy, **some), engine.predict(**some)
    if not torch.equal(wanted.exit_B, found.exit_B):
        raise AssertionError("the engine's rows leave elsewhere")
    gap = (wanted.logits_BC - found.logits_BC).abs().max() / wanted.logits_BC.abs().max().clamp(1)
    with patch.object(stepper, "train_mode", nn.Module.eval):  # draws come in another order
        loss = losses_differ(model, inputs, mx.recipe("joint"), 1, "compile")
    return f"{max(gap.item(), loss):.1g}"


def half_leave(model: mx.MultiExitModel, inputs: dict[str, Tensor]) -> mx.MaxProb:
    """A policy by which half of the rows leave at the first exit."""
    with torch.no_grad():
        sure = model(**inputs)[0].softmax(-1).amax(-1)
    return mx.MaxProb(float(sure.quantile(0.5)))


def exported(model: mx.MultiExitModel, inputs: dict[str, Tensor]) -> str:
    """How far logits of the graphs differ from the model's own."""
    policy = half_leave(model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        parity = mx.export(model, f"{folder}/exported", policy, rows=[inputs])
    if parity.same_exit < 1:
        raise AssertionError(f"{parity.same_exit:.1%} of rows leave where they should")
    return f"{parity.largest_difference:.1g}"


def truncated(model: mx.MultiExitModel, inputs: dict[str, Tensor]) -> str:
    """How far logits of the networks cut behind the exits differ from the exits' own."""
    gaps = []
    for exit in range(model.num_exits):
        wanted = model.predict(mx.FixedExit(exit), **inputs).logits_BC
        for network in loaded(mx.truncate(model, exit)):
            with torch.no_grad():
                answer = network(**inputs)
            gaps.append((getattr(answer, "logits", answer) - wanted).abs().max().item())
    return f"{max(gaps):.1g}"


def loaded(network: Any) -> list[nn.Module]:
    """A network without exits, and where a library has its class, what its folder gives again."""
    library = type(network).__module__.partition(".")[0]
    if library == "multiexit":
        return [network]
    with tempfile.TemporaryDirectory() as folder:
        save_network(network, Path(folder))
        if library == "timm":
            import timm

            again = timm.create_model(f"local-dir:{folder}", pretrained=True)
        else:
            again = type(network).from_pretrained(folder)
    return [network, again.eval()]


CHECKS: dict[str, Callable[[mx.MultiExitModel, dict[str, Tensor]], str]] = {
    "MACs": counted,
    "two processes": shared,
    "trained": trained,
    "recipes": recipes,
    "compiled": compiled,
    "exported": exported,
    "truncated": truncated,
}


def row_of(key: str, checks: list[str]) -> dict[str, str] | None:
    """One row of the table: numbers, or what is said instead; None of what isn't wrapped."""
    warnings.simplefilter("ignore")
    row = {"family": key}
    for name in checks:
        found = made(key)
        if found is None:
            return None
        gc.freeze()  # every run ends with a search for garbage
        try:
            row[name] = CHECKS[name](*found)
        except ValueError as error:
            row[name] = one_line(error).replace("|", "¦")
        except Exception as error:  # whatever it runs into is what is looked for
            row[name] = f"FAILS {one_line(error)}"
    return row


def apart(key: str, checks: list[str]) -> dict[str, str] | None:
    """`row_of` in a process that ends after a while; one that dies is begun again, twice."""
    for again in (True, True, False):
        with ProcessPoolExecutor(1, get_context("fork")) as pool:
            row = pool.submit(row_of, key, checks)
            try:
                return row.result(SECONDS)
            except TimeoutError:
                for process in [*pool._processes.values()]:
                    process.kill()
                return {"family": key} | dict.fromkeys(checks, f"not done in {SECONDS} s")
            except BrokenProcessPool:  # threads of torch and forks don't always agree
                if not again:
                    raise
    return None


def load_exporter() -> None:
    """What each export would import and make anew is there before processes are forked."""
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401
    import torch._dynamo  # noqa: F401
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    registry = ONNXRegistry.from_torchlib()
    ONNXRegistry.from_torchlib = staticmethod(lambda *_, **__: registry)  # type: ignore[method-assign]


def is_number(cell: str) -> bool:
    """Whether a check gave a number, and no sentence."""
    try:
        return float(cell) < float("inf")
    except ValueError:
        return False


def shares(rows: Collection[Mapping[str, str]]) -> list[dict[str, Any]]:
    """Of each kind of networks, how many do what, of how many that were tried."""
    table = []
    for kind in dict.fromkeys(row["family"].partition("/")[0] for row in rows):
        some = [row for row in rows if row["family"].startswith(f"{kind}/")]
        cells = {name: [row[name] for row in some if name in row] for name in CHECKS}
        done = {k: f"{sum(map(is_number, v))} of {len(v)}" for k, v in cells.items()}
        table.append({"kind": kind, **done})
    return table


def keys_of(libraries: list[str]) -> list[str]:
    """`group/family` of the networks of these libraries."""
    from vision_zoo import zoo  # type: ignore[import-not-found]  # beside the tests
    from zoo import ZOO  # type: ignore[import-not-found]

    vision = [key for key in zoo() if key.partition("/")[0] in libraries]
    return [*(ZOO if "transformers" in libraries else []), *vision]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    libraries = ["transformers", "timm", "torchvision"]
    parser.add_argument("--libraries", nargs="+", choices=libraries, default=["transformers"])
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=list(CHECKS))
    parser.add_argument("--only", nargs="+", help="families that are done again, such as text/bert")
    parser.add_argument(
        "--compiler",
        default="aot_eager",
        help="of torch.compile; inductor, which makes machine code too, takes minutes a network",
    )
    parser.add_argument("--output", required=True, type=Path, help="a folder for JSON files")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.compile = partial(torch.compile, backend=args.compiler, mode=None)  # type: ignore[assignment]
    import sklearn.metrics  # noqa: F401  # once, before processes are forked
    import timm  # noqa: F401

    if "exported" in args.checks:
        load_exporter()
    file, command = str(args.output / "zoo.json"), shlex.join(sys.argv)
    rows = {row["family"]: row for row in saved(file)}
    for key in args.only or keys_of(args.libraries):
        checks = [name for name in args.checks if args.only or name not in rows.get(key, {})]
        row = apart(key, checks) if checks else None
        if row is not None:
            print(row, flush=True)
            rows[key] = {**rows.get(key, {}), **row}
            save([*rows.values()], file, command)
    save(shares([*rows.values()]), str(args.output / "trained-and-exported.json"), command)


if __name__ == "__main__":
    main()
