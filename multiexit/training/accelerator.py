"""The processes that train together, as `accelerate launch` or `torchrun` started them."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, parse_flag_from_env

from multiexit.runtime import TIMEOUT, processes
from multiexit.training.config import TrainConfig
from multiexit_runner.user_line import user_level

OTHER_WAYS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}
"""Ways that accelerate's environment may ask for and training doesn't know."""


@contextmanager
def apart(accelerator: Accelerator | None = None) -> Iterator[None]:
    """Inside, accelerate's state, which all of a process share otherwise, is a run's own.

    Whoever else has an `Accelerator` here keeps its precision and its accumulation, and a run has
    those of its configuration whatever came before it.

    Args:
        accelerator: whose state it is; None begins a new one.
    """
    shared_state: Any = processes()._shared_state
    classes: tuple[Any, ...] = (PartialState, AcceleratorState, GradientState)
    states_before = [kind._shared_state for kind in classes]
    if accelerator is None:
        states: list[dict[str, Any]] = [{}, {}, {}]
    else:
        state = accelerator.state.__dict__
        states = [
            {k: state.get(k, v) for k, v in shared_state.items()},
            state,
            accelerator.gradient_state.__dict__,
        ]
    for kind, shared in zip(classes, states, strict=True):
        kind._shared_state = shared
    try:
        if accelerator is None:
            PartialState(states_before[0]["_cpu"], timeout=TIMEOUT)  # the process group stays
        yield
    finally:
        for kind, shared in zip(classes, states_before, strict=True):
            kind._shared_state = shared


def accelerator(config: TrainConfig) -> Accelerator:
    """A run's own accelerator, of its configuration alone.

    Raises:
        ValueError: a tracker that isn't installed, or what `_check_environment` refuses.
    """
    available = {tracker.value for tracker in get_available_trackers()}
    if missing := sorted(set(config.trackers) - available):
        raise ValueError(f"no tracker {missing} is installed; there are {sorted(available)}")
    _check_environment(config)
    with apart():
        return Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=list(config.trackers) or None,
            project_dir=config.output,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # is our own
            dynamo_backend="no",
            # The first process's statistics are shared when an epoch ends, not at every pass. What
            # no exit reads, and layers that are dropped, have no gradient.
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, find_unused_parameters=True)
            ],
        )


def _check_environment(config: TrainConfig) -> None:
    """Refuse or name what accelerate's environment variables ask for and a run doesn't do.

    Raises:
        ValueError: a way of spreading that training doesn't know.
    """
    for name, way in OTHER_WAYS.items():
        if parse_flag_from_env(name):
            raise ValueError(
                f"{name} is set in the environment and asks for {way}; training knows DDP and "
                "FSDP2: unset it, or launch with --multi_gpu or --use_fsdp --fsdp_version 2"
            )
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and processes().num_processes == 1:
        warnings.warn(
            "ACCELERATE_USE_FSDP is set, but this is one process: nothing is sharded",
            stacklevel=user_level(),
        )
    for name, plain, field in (
        ("ACCELERATE_MIXED_PRECISION", "no", "mixed_precision"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1", "accumulation"),
        ("ACCELERATE_DYNAMO_BACKEND", "no", "compile"),
    ):
        value, configured = os.environ.get(name, plain).lower(), getattr(config, field)
        if value != plain and value != str(configured) and not (field == "compile" and configured):
            warnings.warn(
                f"{name}={value} in the environment has no effect: the run's configuration counts, "
                f"and has {field}={configured!r}",
                stacklevel=user_level(),
            )
