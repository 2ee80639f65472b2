"""Whether a module still is what it was, for whoever runs a copy of it."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from operator import is_, itemgetter
from types import FunctionType, MethodType, NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as globally

SMALL = 1 << 14  # tensors of fewer bytes are added up together
SETTINGS = {bool, int, float, complex, str, tuple, NoneType, FunctionType, MethodType}
"""Types of the attributes that count."""


def unchanged(module: nn.Module) -> Callable[[], bool]:
    """A function that tells whether the module still has the same parts, settings and numbers.

    Same parts: the very submodules, parameters, buffers and hooks of now, where they lie now. Same
    settings: attributes of submodules that are numbers, text, tuples or functions, such as a batch
    norm's epsilon; not lists, dicts, arrays, tensors that are no buffers, or other objects, nor
    those of the module itself, which are notes, nor those that begin with an underscore, as what is
    kept does. Same numbers: no tensor's version has moved, and a sum of all their bits, in which
    each place counts differently, is what it was. The sum is needed because fused optimisers, batch
    norms, and writes through `.data` or numpy leave versions alone. What has changed and is changed
    back may count as changed.

    The tensors of now are kept alive, so that no later one can be taken for one of them.
    """
    modules = [*module.modules()]
    dicts = [d for m in modules for d in (m._modules, m._parameters, m._buffers)]
    hooks = [d for m in modules for d in (m._forward_hooks, m._forward_pre_hooks)]
    hooks += [globally._global_forward_hooks, globally._global_forward_pre_hooks]
    hooked = [*_names(hooks)]  # numbers, of which no two hooks have one
    same_settings = _same_settings(modules[1:])
    sizes, names, parts = [*map(len, dicts)], [*_names(dicts)], [*_parts(dicts)]
    tensors = [t for t in parts if isinstance(t, Tensor)]
    counted = [t for t in tensors if not t.is_inference()]  # the others have no version
    places, versions = _places(tensors), _versions(counted)
    words = _word_lists([t.detach() for t in tensors])
    factors = _factors(words)
    sums = _sums(words, factors)

    def same() -> bool:
        return (
            [*map(len, dicts)] == sizes
            and [*_names(dicts)] == names
            and all(map(is_, _parts(dicts), parts))
            and [*_names(hooks)] == hooked
            and same_settings()
            and _versions(counted) == versions
            and _places(tensors) == places
            and _sums(words, factors) == sums
        )

    return same


def _same_settings(modules: Iterable[nn.Module]) -> Callable[[], bool]:
    """A function that tells whether the modules still have the same settings."""
    attributes = [vars(m) for m in modules]
    names = [[name for name in own if _is_setting(name, own[name])] for own in attributes]
    read = [itemgetter("training", *own) for own in names]  # two at least, so a tuple comes

    def get() -> list[Any]:
        return [*chain.from_iterable(g(own) for g, own in zip(read, attributes, strict=True))]

    settings = get()
    replaced = [own.get("forward") for own in attributes]

    def same() -> bool:
        try:
            now = get()
        except KeyError:  # one is gone
            return False
        if [own.get("forward") for own in attributes] != replaced:
            return False
        return all(map(is_, now, settings)) or all(map(_equal, now, settings))

    return same


def _is_setting(name: str, value: Any) -> bool:
    return type(value) in SETTINGS and not name.startswith("_")


def _equal(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and repr(one) == repr(other))


def _names(dicts: Iterable[dict[Any, Any]]) -> Iterator[Any]:
    return chain.from_iterable(dicts)


def _parts(dicts: Iterable[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, dicts))


def _places(tensors: Iterable[Tensor]) -> list[Any]:
    return [(t.data_ptr(), t.dtype, t.shape, t.stride()) for t in tensors]


def _versions(tensors: Iterable[Tensor]) -> list[int]:
    return [t._version for t in tensors]


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
    """The memory from a tensor's first number to its last, never a copy, in 64 or 8 bits each."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    flat = tensor.as_strided([last + 1 if tensor.numel() else 0], [1]).view(torch.uint8)
    aligned = len(flat) % 8 == 0 and flat.storage_offset() % 8 == 0
    return flat.view(torch.int64) if aligned else flat


def _factors(word_lists: list[list[Tensor]]) -> dict[torch.device, Tensor]:
    """For each device as many odd numbers as its longest list has words."""
    longest: dict[torch.device, int] = {}
    for words in word_lists:
        device = words[0].device
        longest[device] = max(longest.get(device, 0), sum(map(len, words)))
    generator = torch.Generator().manual_seed(0)
    most = torch.randint(-(2**62), 2**62, (max(longest.values(), default=0),), generator=generator)
    return {device: (most[:count] | 1).to(device) for device, count in longest.items()}


def _sums(word_lists: list[list[Tensor]], factors: dict[torch.device, Tensor]) -> list[int]:
    """Of each list the sum of its words, each times the factor of its place."""
    sums = []
    for words in word_lists:
        joined = (torch.cat(words) if len(words) > 1 else words[0]).long()
        factor = factors[joined.device][: len(joined)]
        # CUDA has no dot of whole numbers, and CPUs are slower without.
        sums.append(joined.dot(factor) if joined.is_cpu else (joined * factor).sum())
    return torch.stack(sums).tolist() if sums else []
