"""How long each part of a model takes on one machine, by batch size.

Letters: M exits, S batch sizes, B batch rows.
"""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from multiexit import policies, schema
from multiexit.backbones.base import select
from multiexit.cost import wait
from multiexit.folding import for_inference
from multiexit.modes import quiet

if TYPE_CHECKING:
    from multiexit.model import MultiExitModel

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
UNREACHED = 2.0  # no probability is that large

_MS = schema.listed(schema.number(0, 1e12), 1, 10_000)
_ROWS = schema.listed(_MS, 1, 10_000)
TABLE = schema.table(
    {
        "machine": schema.text,
        "batch_sizes": schema.listed(schema.whole(1, 2**31), 1, 10_000),
        **dict.fromkeys(("start_ms", "drop_ms", "full_ms"), _MS),
        **dict.fromkeys(("stages_ms", "check_ms"), _ROWS),
    }
)
"""What a saved table of latencies has."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a model's parts on one machine. Between the batch sizes it is interpolated.

    Args:
        machine: where they were measured, as `machine_of` says it.
        batch_sizes: rising, [S].
        start_ms: before the first stage, [S].
        stages_ms: the stages from one exit to the next, [M, S].
        check_ms: asking the exit: its head, the policy, reading who stops, [M, S].
        drop_ms: taking the rows that stopped out of a batch, by how many stay, [S].
        full_ms: the network with its last head alone, [S].
    """

    machine: str
    batch_sizes: tuple[int, ...]
    start_ms: tuple[float, ...]
    stages_ms: tuple[tuple[float, ...], ...]
    check_ms: tuple[tuple[float, ...], ...]
    drop_ms: tuple[float, ...]
    full_ms: tuple[float, ...]

    def until_exit_ms(self, batch_size: int) -> list[float]:
        """From the start of a batch until its answer if all its rows leave at exit m, [M]."""
        spent = self.at(self.start_ms, batch_size)
        until = []
        for stages, check in zip(self.stages_ms, self.check_ms, strict=True):
            spent += self.at(stages, batch_size) + self.at(check, batch_size)
            until.append(spent)
        return until

    def expected_ms(self, shares_M: Sequence[float], batch_size: int) -> float:
        """A batch whose rows leave in these shares, each leaving the batch at once."""
        spent, here = self.at(self.start_ms, batch_size), 1.0
        for share, stages, check in zip(shares_M, self.stages_ms, self.check_ms, strict=True):
            # The chance that any row is still here, times the size of what is left then.
            some = 1 - (1 - here) ** batch_size
            rows = max(1.0, batch_size * here / some) if some > 0 else 1.0
            spent += some * (self.at(stages, rows) + self.at(check, rows))
            here = max(0.0, here - share)
        return spent

    def at(self, measured_S: Sequence[float], rows: float) -> float:
        """A figure at any number of rows; beyond the largest size it grows in proportion."""
        largest = self.batch_sizes[-1]
        if rows > largest:
            return measured_S[-1] * rows / largest
        return float(np.interp(rows, self.batch_sizes, measured_S))

    def with_exits(self, exits: Sequence[int]) -> "Latency":
        """Of the same model with some of its exits: the stages between them add up."""
        stages_MS, check_MS = np.array(self.stages_ms), np.array(self.check_ms)
        bounds = zip([-1, *exits[:-1]], exits, strict=True)
        return Latency(
            **{
                **asdict(self),
                "stages_ms": _nested([stages_MS[a + 1 : b + 1].sum(0) for a, b in bounds]),
                "check_ms": _nested(check_MS[list(exits)]),
            }
        )

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Latency":
        """What `to_json` gave.

        Raises:
            ValueError: another table, sizes that don't rise, or figures that aren't one for each.
        """
        TABLE("latency", data)
        sizes = data["batch_sizes"]
        if list(sizes) != sorted(set(sizes)):
            raise ValueError(f"latency.batch_sizes is {schema.short(sizes)}; it must rise")
        columns = [data["start_ms"], data["drop_ms"], data["full_ms"]]
        columns += [*data["stages_ms"], *data["check_ms"]]
        each = len(data["stages_ms"]) == len(data["check_ms"])
        if not each or any(len(column) != len(sizes) for column in columns):
            raise ValueError(f"latency must have a figure per exit and each of {len(sizes)} sizes")
        return cls(**{name: _tuples(value) for name, value in data.items()})


@torch.inference_mode()
def profile(
    model: "MultiExitModel",
    policy: policies.ExitPolicy | None = None,
    inputs: dict[str, Tensor] | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    repeats: int = 5,
) -> Latency:
    """Measure a model's parts where it is, as an engine runs them: the medians of some repeats.

    Args:
        model: is put into evaluation mode for the while.
        policy: that exits are asked by; by default the model's own, or one that costs what
            most do (max p; a fixed exit for regression).
        inputs: rows by name, of which the first is used; by default the backbone's own example
            (text: 128 tokens). Give text as long as yours is.
        batch_sizes: rising.
        repeats: readings of each part.

    Example:
        >>> import multiexit as mx
        >>> model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=10)
        >>> model.latency = mx.profile(model, batch_sizes=(1, 2), repeats=1)  # kept with the model

    Raises:
        ValueError: batch sizes that don't rise from 1 at least, or a policy that doesn't fit.
    """
    sizes = tuple(batch_sizes)
    if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
        raise ValueError(f"batch_sizes must rise from 1 at least, got {list(batch_sizes)}")
    if policy is None:
        usual = policies.MaxProb(UNREACHED)
        policy = model.policy or (usual if model.num_classes > 1 else policies.FixedExit(0))
    policies.check(policy, model.num_exits, model.num_classes)
    one = model.example_inputs() if inputs is None else inputs
    device = next(model.parameters()).device
    columns = []
    run = for_inference(model)
    with quiet(run):
        for size in sizes:
            rows = {k: v[:1].expand(size, *v.shape[1:]).to(device) for k, v in one.items()}
            columns.append(_column(run, policy, rows, repeats))
    start, stages, check, drop, full = zip(*columns, strict=True)
    return Latency(
        machine_of(model),
        sizes,
        start,
        _nested(np.array(stages).T),
        _nested(np.array(check).T),
        drop,
        full,
    )


def machine_of(model: "MultiExitModel") -> str:
    """Where a model is, and in which precision: two profiles compare only if this is the same."""
    weight = next(model.parameters())
    dtype = str(weight.dtype).removeprefix("torch.")
    if weight.device.type == "cuda":
        return f"{torch.cuda.get_device_name(weight.device)}, {dtype}"
    return f"{_cpu()}, {torch.get_num_threads()} threads, {dtype}"


def check_here(model: "MultiExitModel", latency: Latency) -> None:
    """Refuse a table that wasn't measured where the model is, or for its exits."""
    here, measured = machine_of(model), len(latency.stages_ms)
    problem = None
    if latency.machine != here:
        problem = f"is from another machine ({latency.machine}; this is {here})"
    elif measured != model.num_exits:
        problem = f"has {measured} exits, not {model.num_exits}"
    if problem is not None:
        raise ValueError(
            f"the latency table {problem}: measure one here, with multiexit.profile(model) or "
            "`multiexit profile`"
        )


def _column(
    model: "MultiExitModel", policy: policies.ExitPolicy, inputs: dict[str, Tensor], repeats: int
) -> tuple[float, list[float], list[float], float, float]:
    """All parts at one batch size."""
    took = partial(_milliseconds, repeats)
    carry = model.backbone.start(**inputs)
    start = took(lambda: model.backbone.start(**inputs))
    memory, state = {}, {}
    stages, check = [], []
    keep = torch.arange(len(next(iter(inputs.values()))), device=next(model.parameters()).device)
    drop = took(lambda: select(carry, keep))
    for exit in range(model.num_exits):
        stages.append(took(partial(model.to_exit, exit, carry)))
        carry, feature = model.to_exit(exit, carry)

        def ask(c: Any = carry, f: Any = feature, m: Any = memory, s: Any = state, e: int = exit):
            logits_BC, after = model.ask(e, f, c, m)
            before = policy.init(logits_BC.float()) if e == 0 else s
            now, stop_B = policies.step(policy, before, logits_BC.float(), after.get("certainty"))
            stop_B.sum().item()
            return after, now

        check.append(took(ask))
        memory, state = ask()
    return start, stages, check, drop, took(lambda: model.full(**inputs))


def _milliseconds(repeats: int, call: Callable[[], Any]) -> float:
    """The median of some readings; short calls are repeated within each."""
    call()
    wait()
    begin = time.perf_counter()
    call()
    wait()
    count = max(1, min(100, int(0.002 / max(time.perf_counter() - begin, 1e-6))))
    readings = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        readings.append((time.perf_counter() - begin) / count)
    return 1e3 * statistics.median(readings)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _nested(rows: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in rows)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
