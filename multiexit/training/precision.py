"""The precision that weights are trained in, and torch's switches while they are."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from multiexit_runner.user_line import user_level


def trainable_weights(model: nn.Module) -> None:
    """Make half-precision weights float32, in place, and say so; others stay as they are.

    In bfloat16 a step below 1/256 of a weight vanishes.

    Raises:
        ValueError: weights that were made in inference mode, which can't be trained.
    """
    named: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    inference_tensors = [name for name, tensor in named.items() if tensor.is_inference()]
    if inference_tensors:
        raise ValueError(
            f"{inference_tensors[0]} was made inside torch.inference_mode(), and such tensors "
            "can't be trained: make the model outside of it"
        )
    half = {n: t for n, t in named.items() if t.is_floating_point() and t.element_size() < 4}
    if not half:
        return
    kinds = sorted({str(t.dtype).removeprefix("torch.") for t in half.values()})
    for tensor in half.values():
        tensor.data = tensor.data.float()
    warnings.warn(
        f"{len(half)} of {len(named)} tensors of the model come in {', '.join(kinds)}, in which "
        "small steps vanish: they are float32 from here on. For speed and memory train with "
        "mixed_precision='bf16', which keeps float32 weights",
        stacklevel=user_level(),
    )


@contextmanager
def training_switches(device: torch.device) -> Iterator[None]:
    """Inside, gradients are on, whatever is around it.

    Raises:
        ValueError: autocast around a run: it would keep its copies of weights over all steps.
    """
    if torch.is_autocast_enabled(device.type):
        raise ValueError(
            "fit was called inside torch.autocast, which keeps copies of weights that training "
            "changes: call it outside, and set mixed_precision='bf16'"
        )
    with torch.inference_mode(False), torch.enable_grad():
        yield
