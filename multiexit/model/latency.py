"""Latency tables: milliseconds of each part of a model on one machine, by batch size.

Letters: M exits, S batch sizes, B batch rows.
"""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from multiexit.files import schema

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
"""The schema of a saved table of latencies."""


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

    Example:
        Two exits, measured at batches of 1 and 8 rows:

        >>> import multiexit as mx
        >>> stages, check = ((2.0, 9.0), (2.0, 9.0)), ((0.5, 0.5), (0.5, 0.5))
        >>> table = mx.Latency("a CPU", (1, 8), (1.0, 1.0), stages, check, (0.1, 0.1), (5.5, 19.5))
        >>> table.until_exit_ms(1), table.expected_ms((0.5, 0.5), batch_size=1)
        ([3.5, 6.0], 4.75)
    """

    machine: str
    batch_sizes: tuple[int, ...]
    start_ms: tuple[float, ...]
    stages_ms: tuple[tuple[float, ...], ...]
    check_ms: tuple[tuple[float, ...], ...]
    drop_ms: tuple[float, ...]
    full_ms: tuple[float, ...]

    def until_exit_ms(self, batch_size: int) -> list[float]:
        """Milliseconds from a batch's start to its answer if all its rows leave at exit m, [M]."""
        spent = self.at(self.start_ms, batch_size)
        until = []
        for stages, check in zip(self.stages_ms, self.check_ms, strict=True):
            spent += self.at(stages, batch_size) + self.at(check, batch_size)
            until.append(spent)
        return until

    def expected_ms(self, shares_M: Sequence[float], batch_size: int) -> float:
        """Milliseconds of a batch whose rows leave in these shares, each at once.

        Args:
            shares_M: the share of rows that leave at each exit, summing to 1.
            batch_size: B, at the start.
        """
        spent, running = self.at(self.start_ms, batch_size), 1.0
        for share, stages, check in zip(shares_M, self.stages_ms, self.check_ms, strict=True):
            # The chance that any row still runs, times the size of what is left then.
            any_running = 1 - (1 - running) ** batch_size
            rows = max(1.0, batch_size * running / any_running) if any_running > 0 else 1.0
            spent += any_running * (self.at(stages, rows) + self.at(check, rows))
            running = max(0.0, running - share)
        return spent

    def at(self, measured_S: Sequence[float], rows: float) -> float:
        """Milliseconds at any number of rows, between two sizes by interpolation.

        Beyond the largest size they grow in proportion to the rows.

        Args:
            measured_S: milliseconds at each batch size.
            rows: how many there are; a mean need not be whole.
        """
        largest = self.batch_sizes[-1]
        if rows > largest:
            return measured_S[-1] * rows / largest
        return float(np.interp(rows, self.batch_sizes, measured_S))

    def with_exits(self, exits: Sequence[int]) -> "Latency":
        """The table of the model reduced to these exits.

        The stages between two kept exits are added up.

        Args:
            exits: indices of exits, rising, counted from 0.
        """
        stages_MS, check_MS = np.array(self.stages_ms), np.array(self.check_ms)
        bounds = zip([-1, *exits[:-1]], exits, strict=True)
        return Latency(
            **{
                **asdict(self),
                "stages_ms": nested([stages_MS[a + 1 : b + 1].sum(0) for a, b in bounds]),
                "check_ms": nested(check_MS[list(exits)]),
            }
        )

    def to_json(self) -> dict[str, Any]:
        """Give it as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Latency":
        """Make the table that `to_json` gave.

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


def machine_of(model: nn.Module) -> str:
    """Name the machine that a model is on, and its precision.

    Two profiles compare only if this is the same.

    Returns:
        The GPU's name, or the CPU's with the number of threads, and the weights' type.
    """
    weight = next(model.parameters())
    dtype = str(weight.dtype).removeprefix("torch.")
    if weight.device.type == "cuda":
        return f"{torch.cuda.get_device_name(weight.device)}, {dtype}"
    return f"{_cpu_name()}, {torch.get_num_threads()} threads, {dtype}"


def check_latency(model: nn.Module, num_exits: int, latency: Latency) -> None:
    """Refuse a table that wasn't measured where the model is, or for so many exits.

    Args:
        model: for its machine and precision.
        num_exits: M.
        latency: the table.

    Raises:
        ValueError: another machine, precision, or number of exits.
    """
    machine, exits = machine_of(model), len(latency.stages_ms)
    problem = None
    if latency.machine != machine:
        problem = f"is from another machine ({latency.machine}; this is {machine})"
    elif exits != num_exits:
        problem = f"has {exits} exits, not {num_exits}"
    if problem is not None:
        raise ValueError(
            f"the latency table {problem}: measure one here, with multiexit.profile(model) or "
            "`multiexit profile`"
        )


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def nested(rows: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in rows)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
