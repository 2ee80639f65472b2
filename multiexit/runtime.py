"""Services of the process: modes of modules, compiling, other processes, versions."""

import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from multiexit import _version


def wide(tensor: Tensor) -> Tensor:
    """Take a tensor to float32 at least: bf16 is too coarse for losses and thresholds near 1."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; outside, also after an error, every submodule has its own mode."""
    with modes_kept(*modules):
        for module in modules:
            module.eval()
        yield


@contextmanager
def modes_kept(*modules: nn.Module) -> Iterator[None]:
    """Whatever happens inside, modes and `requires_grad` are as before at the end."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    flags = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
        for p, trained in flags:
            if p.requires_grad != trained:
                p.requires_grad_(trained)


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Buffers that what runs inside moves, as counters and running means, are put back."""
    kept = [
        (part, name, buffer, buffer._version, buffer.clone())
        for part in module.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None and not buffer.is_inference()
    ]
    try:
        yield
    finally:
        for part, name, buffer, version, copy in kept:
            if name in part._buffers:
                part._buffers[name] = buffer
            if buffer._version != version:
                buffer.copy_(copy)


@contextmanager
def countable() -> Iterator[None]:
    """Attention by plain operations: fused ones count as no compute at all on a CPU."""
    with layers_by_operations(), sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def layers_by_operations() -> Iterator[None]:
    """torch's own encoder layers operation by operation, not as one in evaluation."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def train_mode(model: nn.Module) -> None:
    """Train mode, but for parts all of whose parameters are frozen: these are in evaluation.

    A part without parameters, such as dropout, goes with the smallest part around it that has some.
    """
    if any(True for _ in model.parameters()) and not any(
        p.requires_grad for p in model.parameters()
    ):
        model.eval()
        return
    model.training = True
    for child in model.children():
        train_mode(child)


def compiled(function: Any, graphs: int, **options: Any) -> Any:
    """`torch.compile`, with room for as many graphs; torch gives up at 8.

    Args:
        function: what is compiled.
        graphs: how many there may be, for all compiled functions of the process.
        options: what else `torch.compile` takes.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, graphs)
    return torch.compile(function, **options)


TIMEOUT = timedelta(minutes=10)
"""How long processes wait for one another before they give up."""


def processes() -> PartialState:
    """This process among the others; the first call joins them.

    If one process hangs, the others give up after `TIMEOUT`. For another limit call
    `accelerate.PartialState(timeout=…)` before anything of multiexit: the first call decides.
    """
    # Without cpu=True, accelerate treats processes that torchrun started on CPUs as separate runs.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu, timeout=TIMEOUT)


def first_process_checks(check: Callable[[], None]) -> None:
    """Let the first process check what all share, such as a folder; what it raises, all raise.

    Raises:
        ValueError, OSError: as the check does.
    """
    refusals: list[Exception | None] = [None]
    if processes().is_main_process:
        try:
            check()
        except (ValueError, OSError) as error:
            refusals = [error]
    (refusal,) = broadcast_object_list(refusals)
    if refusal is not None:
        raise refusal


def versions() -> dict[str, Any]:
    """The versions that a result depends on, the number of CPUs, and the device."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "multiexit": _version.__version__,
        "cpus": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    }
