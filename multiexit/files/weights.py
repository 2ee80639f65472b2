"""A file of weights: its header is looked at before a network is made for it, then it is read."""

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from multiexit.files.paths import regular_file

FLOATING = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


MARK = "multiexit.json"  # under which a file's own mark is, beside the other names of tensors


class Stored(NamedTuple):
    """The entry of a tensor in the header."""

    dtype: str
    shape: tuple[int, ...]


def header(path: Path, inside: Path | None = None) -> dict[str, Stored]:
    """The tensors in a safetensors file, by name; none of them is read.

    Raises:
        ValueError: no file, one of another format, or one cut short.
    """
    with _readable(path, inside), safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {n: Stored(s.get_dtype(), tuple(s.get_shape())) for n, s in slices.items()}


def mark(path: Path, inside: Path | None = None) -> str | None:
    """The mark that a file was saved with, or None."""
    with _readable(path, inside), safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get(MARK)


def tensors(path: Path, inside: Path | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, by name, in their stored shapes and types.

    Args:
        path: of the file.
        inside: the folder that it must lie in, or None.

    Raises:
        ValueError: no file, one of another format, or one cut short.
    """
    with _readable(path, inside):
        return load_file(path)


@contextmanager
def bounded(stored: Mapping[str, Stored]) -> Iterator[None]:
    """Inside, no network is made that has many times more parameters, or larger ones, than stored.

    Raises:
        ValueError: there, at the parameter that is too much.
    """
    count, size = 0, 0
    most = 1000 + 8 * len(stored)
    largest = 10**7 + 10 * sum(math.prod(tensor.shape) for tensor in stored.values())

    def count_parameter(module: nn.Module, name: str, p: Any) -> None:
        nonlocal count, size
        count, size = count + 1, size + (0 if p is None else p.numel())
        if count > most or size > largest:
            raise ValueError(
                f"it has over {count - 1} parameters of {size:,} numbers, for {len(stored)} "
                "tensors stored"
            )

    handle = register_module_parameter_registration_hook(count_parameter)
    try:
        yield
    finally:
        handle.remove()


def check_fit(expected: Mapping[str, Tensor], stored: Mapping[str, Stored], path: Path) -> None:
    """Refuse a file whose tensors aren't those of a network.

    Args:
        expected: the network's parameters and buffers by all their names; shared ones are the same
            object, and are stored under one of them.
        stored: the file's header.
        path: of the file.

    Raises:
        ValueError: which tensors are missing, left over, of another shape or no numbers.
    """
    extra = sorted(stored.keys() - expected.keys())
    stored_ids = {id(tensor) for name, tensor in expected.items() if name in stored}
    missing = [name for name, tensor in expected.items() if id(tensor) not in stored_ids]
    problems = []
    if missing:
        problems.append(f"it lacks {_first_few(missing)}")
    if extra:
        problems.append(f"it has {_first_few(extra)} too many")
    for name in sorted(stored.keys() & expected.keys()):
        entry, tensor = stored[name], expected[name]
        if entry.shape != tuple(tensor.shape):
            problems.append(f"{name} is {list(entry.shape)}, not {list(tensor.shape)}")
        elif (entry.dtype in FLOATING) != tensor.is_floating_point():
            problems.append(f"{name} is stored as {entry.dtype}, not as {tensor.dtype}")
    if problems:
        raise ValueError(f"{path} doesn't fit this model: {_first_few(problems, '; ')}")


def save_weights(model: nn.Module, path: Path, mark: str) -> None:
    """Write a model as a safetensors file, a tensor that has several names under one of them.

    Tensors that are views of one memory are written each for itself.

    Args:
        model: whose parameters and buffers they are.
        path: of the file.
        mark: that `mark_of` gave.
    """
    state, tied = _named_once(model)
    save_file(state, path, {MARK: mark, **tied})


def mark_of(model: nn.Module) -> str:
    """What tells a model's weights from others, of the same network too: a sum over all bits."""
    total = 0
    for name, tensor in _named_once(model)[0].items():
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _named_once(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A model's tensors, each under one name, and that of each other name."""
    names: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    for name in sorted(state):
        names.setdefault(id(state[name]), name)
    tied = {name: names[id(tensor)] for name, tensor in state.items()}
    once = {name: _alone(state[name].detach()) for name in names.values()}
    return once, {name: kept for name, kept in tied.items() if name != kept}


def _alone(tensor: Tensor) -> Tensor:
    """The tensor, or a copy where it is not the whole of its memory in order."""
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def name_once(module: nn.Module) -> None:
    """Let a module's `state_dict()` be such as safetensors files can hold, for whoever saves it.

    A tensor with several names has the first of them there, views of one memory are copies, and
    `load_state_dict` knows the other names.

    Args:
        module: changed in place.

    Example:
        >>> import torch
        >>> from multiexit.files.weights import name_once
        >>> first = torch.nn.Linear(2, 2)
        >>> both = torch.nn.Sequential(first, first)
        >>> name_once(both)
        >>> list(both.state_dict()), both.load_state_dict(both.state_dict())
        (['0.weight', '0.bias'], <All keys matched successfully>)
    """

    def names(prefix: str) -> Iterator[list[str]]:
        """All names of each tensor."""
        same: dict[int, list[str]] = {}
        for some in (module.named_parameters, module.named_buffers):
            for name, tensor in some(remove_duplicate=False):
                same.setdefault(id(tensor), []).append(prefix + name)
        yield from same.values()

    def saved(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        for first, *others in names(prefix):
            if first in state:
                state[first] = _alone(state[first])
            for other in others:
                state.pop(other, None)

    def loaded(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        for first, *others in names(prefix):
            state.update({other: state[first] for other in others if first in state})

    module.register_state_dict_post_hook(saved)
    module.register_load_state_dict_pre_hook(loaded)


def check_plain(model: nn.Module) -> None:
    """Refuse a model whose state isn't all plain tensors, which alone can be written.

    Raises:
        ValueError: names the first that isn't.
    """
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.is_quantized:
            what = "a quantised tensor" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"{name} is {what}, and a model's folder holds plain tensors: save the model first "
                "and quantise it after loading"
            )


def load_weights(model: nn.Module, path: Path, inside: Path | None = None) -> None:
    """Fill a model from a safetensors file; it gets the precision of what is stored.

    Args:
        model: changed in place.
        path: of the file.
        inside: the folder that it must lie in, or None.

    Raises:
        ValueError: no file, one cut short, or tensors missing, left over or of another shape.
    """
    own, stored = model.state_dict(keep_vars=True), header(path, inside)
    check_fit(own, stored, path)
    for name, entry in stored.items():
        if entry.dtype in FLOATING:
            own[name].data = own[name].data.to(FLOATING[entry.dtype])
    model.load_state_dict(tensors(path, inside), strict=False)  # shared ones have one name there


@contextmanager
def _readable(path: Path, inside: Path | None) -> Iterator[None]:
    if not path.exists():
        raise ValueError(f"no weights at {path}")
    regular_file(path, inside)
    with path.open("rb") as file:
        start = file.read(9)  # of safetensors a length, which may be any, and "{"
    pickled = start[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    if pickled and start[8:] != b"{":
        raise ValueError(
            f"{path} is no safetensors file but a pickle, as torch.save writes, which could run "
            "code; convert it once: tensors = torch.load(path, weights_only=True), take out the "
            "state_dict if it lies inside, take 'module.' off the names if they have it, then "
            "safetensors.torch.save_file(tensors, 'weights.safetensors')"
        )
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short: {error}") from error


def _first_few(items: list[str], between: str = ", ") -> str:
    more = len(items) - 5
    return between.join(items[:5]) + (f" and {more} more" if more > 0 else "")
