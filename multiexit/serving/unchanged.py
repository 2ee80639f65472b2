"""Whether a module still is what it was, for whoever runs a copy of it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

SMALL = 1 << 14  # tensors of fewer bytes are added up together


def unchanged(module: nn.Module) -> Callable[[], bool]:
    """A function that tells whether the module still has the same parts and numbers.

    Same parts: the very submodules, parameters and buffers of now, where they lie now. Same
    numbers: no tensor's version has moved, and the sum of all their bits is what it was. The sum
    is needed because fused optimisers, batch norms, and writes through `.data` or numpy leave
    versions alone. What has changed and is changed back may count as changed.

    The tensors of now are kept alive, so that no later one can be taken for one of them.
    """
    parts = [(d, list(d.items())) for m in module.modules() for d in _contents(m)]
    tensors = [t for d, items in parts for _, t in items if isinstance(t, Tensor)]
    places, aliases = _places(tensors), [t.detach() for t in tensors]
    words = _word_lists(aliases)
    sums = _sums(words)

    def same() -> bool:
        return (
            all(_same_items(d, items) for d, items in parts)
            and _places(tensors) == places
            and _sums(words) == sums
        )

    return same


def _contents(module: nn.Module) -> Iterator[dict[str, Any]]:
    yield module._modules
    yield module._parameters
    yield module._buffers


def _same_items(current: dict[str, Any], recorded: list[tuple[str, Any]]) -> bool:
    return len(current) == len(recorded) and all(
        current.get(key) is value for key, value in recorded
    )


def _places(tensors: list[Tensor]) -> list[Any]:
    return [
        (t.data_ptr(), t.dtype, t.shape, -1 if t.is_inference() else t._version) for t in tensors
    ]


def _word_lists(tensors: list[Tensor]) -> list[list[Tensor]]:
    """The tensors' memory as whole numbers, in lists of those that are added up together."""
    lists: dict[Any, list[Tensor]] = {}
    large = []
    for tensor in tensors:
        words = _bits(tensor)
        if words.numel() * words.element_size() < SMALL:
            lists.setdefault((words.dtype, words.device), []).append(words)
        elif len(words):
            large.append([words])
    return [*lists.values(), *large]


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's memory, without a copy where it is dense, as numbers of 64 or 8 bits."""
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        tensor = tensor.permute(0, 2, 3, 1)
    flat = tensor.reshape(-1).view(torch.uint8)
    aligned = len(flat) % 8 == 0 and flat.storage_offset() % 8 == 0
    return flat.view(torch.int64) if aligned else flat


def _sums(word_lists: list[list[Tensor]]) -> list[int]:
    sums = [torch.cat(words).sum() if len(words) > 1 else words[0].sum() for words in word_lists]
    return torch.stack(sums).tolist() if sums else []
