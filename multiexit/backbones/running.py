"""Trying a network: on an example, or random rows like it, on its device."""

from typing import Any

import torch
from torch import Tensor, nn

PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def like_parameters(example: Tensor, module: nn.Module) -> Tensor:
    """Put an example on a module's device; numbers (not tokens) in its precision. Same shape."""
    p = next((p for p in module.parameters() if p.is_floating_point()), None)
    if p is None or example.is_meta:
        return example
    return example.to(p.device, p.dtype if example.is_floating_point() else example.dtype)


def in_precision(x: Tensor, module: nn.Module) -> Tensor:
    """Take fractions to the precision of a module's weights, in the same shape.

    Under autocast that is torch's matter, but for float64, as numpy's tables are, which autocast
    leaves alone.
    """
    if x.dtype not in PRECISIONS:
        return x
    dtype = next((p.dtype for p in module.parameters() if p.dtype in PRECISIONS), x.dtype)
    if dtype == x.dtype:
        return x
    casts = x.dtype != torch.float64 and torch.is_autocast_enabled(x.device.type)
    return x if casts else x.to(dtype)


def random_rows(example: Tensor, module: nn.Module, rows: int) -> Tensor:
    """Make rows like one example row, of which none is like another: noise, or tokens it knows.

    Args:
        example: one row, [1, …].
        module: whose device, precision and embeddings they suit.
        rows: how many.

    Returns:
        [rows, …], the same at each call.
    """
    if example.is_complex():
        raise ValueError("the numbers that this network reads are complex: exits go by real ones")
    generator = torch.Generator().manual_seed(0)
    shape = (rows, *example.shape[1:])
    if example.is_floating_point():
        return like_parameters(torch.randn(shape, generator=generator), module)
    tables = [m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)]
    below = tables[0] if tables else int(example.max()) + 1
    tokens = torch.randint(below, shape, generator=generator).to(example.dtype)
    return like_parameters(tokens, module)


def check_weights(module: nn.Module) -> None:
    """Refuse a network without values, on the meta device or of lazy layers, or with rounded ones.

    Raises:
        ValueError: names a parameter or a layer.
    """
    for name, layer in module.named_modules():
        if "quantized" in type(layer).__module__.split("."):
            raise ValueError(
                f"{name!r} is quantised: it can't learn, and quantize_dynamic scales all rows of a "
                "batch alike. Wrap the network as it was before; multiexit.export(…, int8=True) "
                "rounds it when it is trained"
            )
    for name, p in module.named_parameters():
        if nn.parameter.is_lazy(p):
            raise ValueError(f"{name!r} has no shape yet: run the network once before wrapping it")
        if p.is_meta:
            raise ValueError(
                f"{name!r} is on the meta device and has no values: load the network's weights "
                "before wrapping it"
            )


def has_forward(module: nn.Module) -> bool:
    """Whether a module computes anything as a whole."""
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


def run(module: nn.Module, *args: Tensor, **inputs: Tensor) -> Any:
    """What a module's own forward gives.

    Raises:
        ValueError: an input that it doesn't take.
    """
    try:
        return module(*args, **inputs)
    except Exception as error:  # whatever a network says to an input that it doesn't take
        shape = tuple(next(iter((*args, *inputs.values()))).shape)
        raise ValueError(
            f"{type(module).__name__} doesn't run on an input of shape {shape}, so it "
            f"can't be compared with its parts: {error}. Pass input_shape=, the shape of one row "
            "that it takes; a network that takes more than one tensor needs an adapter of its own"
        ) from error
