"""Adapters of peft in a network: found, taken out while it is taken apart, described, merged.

An adapter is a layer of peft that stands in the place of one of the network's own and runs it. All
of them look alike, so nothing here imports peft but `insert`, which makes new ones.
"""

import copy
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from multiexit.backbones.base import Backbone
from multiexit.backbones.classifier import NetworkHead

Place = tuple[nn.Module, str, nn.Module]
"""A module, the name of a child in it, and that child: a layer of peft."""


def network_of(module: nn.Module) -> nn.Module:
    """The network that a PeftModel runs, with the adapters in it; any other module as it is.

    Raises:
        ValueError: an adapter that no layer holds, such as prefixes and prompts.
    """
    if not (hasattr(type(module), "get_base_model") and hasattr(module, "peft_config")):
        return module
    peft_model: Any = module
    network = peft_model.get_base_model()
    configs = list(peft_model.peft_config.values())
    beside = any(config.is_prompt_learning for config in configs)
    if beside or (configs and next(_places(network), None) is None):
        kinds = ", ".join(sorted({config.peft_type.value for config in configs}))
        raise ValueError(
            f"this {type(module).__name__} adapts by {kinds}, beside the network's layers, and "
            "stages run these alone: use adapters inside of layers, such as LoRA"
        )
    return network


def layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers of peft in a network, each under its first name; not those inside of others."""
    adapted = {id(layer) for _, _, layer in _places(module)}
    return {
        name: layer
        for name, layer in module.named_modules()
        if id(layer) in adapted and ".base_layer." not in name
    }


@contextmanager
def taken_out(network: nn.Module) -> Iterator[dict[int, nn.Module]]:
    """Inside, the network's own layers stand in the place of peft's.

    Of a module that is trained and saved whole (`modules_to_save`), the trained copy stands there.

    Yields:
        The adapters, by the `id` of the layer that stands for them.
    """
    places = list(_places(network))
    for parent, name, layer in places:
        parent._modules[name] = _plain(layer)
    try:
        yield {id(_plain(layer)): layer for _, _, layer in places if is_adapter(layer)}
    finally:
        for parent, name, layer in reversed(places):
            parent._modules[name] = layer


def put_in(backbone: Backbone, taken: Mapping[int, nn.Module]) -> None:
    """Put adapters into a backbone that was made without them, and let its heads learn.

    Heads are trained whole, so an adapter in the network's own head is merged into a copy of it.

    Args:
        backbone: changed in place.
        taken: what `taken_out` gave, outside of it.
    """
    _put(backbone, taken)
    memo: dict[int, Any] = {}
    classifier, pooler = (
        _without_adapters(head, taken, memo) for head in (backbone.classifier, backbone.pooler)
    )
    if classifier is not backbone.classifier:
        assert isinstance(classifier, NetworkHead)
        backbone.set_classifier(classifier)
    backbone.set_pooler(pooler)  # type: ignore[arg-type]
    for head in (classifier, pooler):
        if head is not None:
            head.requires_grad_(True)


def _without_adapters(
    head: nn.Module | None, taken: Mapping[int, nn.Module], memo: dict[int, Any]
) -> nn.Module | None:
    """The head itself where no adapter was in it, else a copy with these merged."""
    parts = [] if head is None else list(head.modules())
    adapted = [part for part in parts if id(part) in taken]
    if not adapted and not any(map(is_adapter, parts)):
        return head
    head = copy.deepcopy(head, memo)
    assert head is not None
    for part in adapted:
        merged = copy.deepcopy(taken[id(part)])
        _merge(merged)
        memo[id(part)].load_state_dict(_plain(merged).state_dict())
    merge_adapters(head)
    return head


def described(backbone: Backbone) -> dict[str, Any] | None:
    """A backbone's `spec`, with the LoRA adapters that are in its layers now.

    Returns:
        None where the backbone has no spec.
    """
    adapted = layers(backbone)
    if backbone.spec is None or not adapted:
        return backbone.spec
    return {**backbone.spec, "lora": _described(adapted)}


def _described(adapted: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `insert`; a comparison tells whether they make the same adapters again."""
    first = next(iter(adapted.values()))
    name = next(iter(getattr(first, "r", {})), "")
    dropout = getattr(first, "lora_dropout", {})
    rate = getattr(dropout[name], "p", 0.0) if name in dropout else 0.0
    of_all = {
        key: bool(getattr(first, key, {}).get(name, False))
        for key in ("use_rslora", "use_dora", "lora_bias")
    }
    numbers = {
        place: {key: getattr(layer, key, {}).get(name, 0) for key in ("r", "lora_alpha")}
        for place, layer in adapted.items()
    }
    return {"name": name, "layers": numbers, "lora_dropout": rate, **of_all}


def insert(backbone: Backbone, lora: Mapping[str, Any]) -> None:
    """Put new LoRA adapters into a backbone, as a description has them.

    Args:
        backbone: changed in place; all of it but the adapters is frozen.
        lora: the entry of that name in what `described` gave.

    Raises:
        ValueError: peft isn't installed, or the backbone has no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("the backbone has LoRA adapters: install peft to load it") from error
    parts, places = {name for name, _ in backbone.named_modules() if name}, lora["layers"]
    if missing := [name for name in places if name not in parts]:
        raise ValueError(f"backbone.lora.layers: there is no layer {missing[0]!r}")
    options = {key: value for key, value in lora.items() if key not in ("name", "layers")}
    for key, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        ((usual, _),) = Counter(numbers[key] for numbers in places.values()).most_common(1)
        options[key] = usual
        options[pattern] = {
            f"^{re.escape(name)}": numbers[key]
            for name, numbers in places.items()
            if numbers[key] != usual
        }
    config = LoraConfig(target_modules="|".join(map(re.escape, places)), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft says what it reads off a layer
        inject_adapter_in_model(config, backbone, lora["name"])
    # Where a layer has several places, peft fills the first.
    _put(backbone, {id(_plain(layer)): layer for _, _, layer in _places(backbone)})


def merge_adapters(model: nn.Module) -> None:
    """Add adapters of peft to the weights of the layers that they are in: `W ← W + s B A`.

    In place. What comes out is a plain network without adapters, whose answers are the same up to
    rounding; what was frozen stays frozen. Before wrapping, peft's own `merge_and_unload` does the
    same.

    Args:
        model: a `MultiExitModel`, a `Backbone` or any other module.

    Raises:
        ValueError: an adapter with NaN or infinite weights.

    Example:
        >>> import peft, multiexit as mx
        >>> backbone = mx.wrap("cifar-resnet-20")
        >>> config = peft.LoraConfig(target_modules=["conv1"])
        >>> _ = peft.inject_adapter_in_model(config, backbone)
        >>> mx.merge_adapters(backbone)
        >>> any("lora" in name for name, _ in backbone.named_parameters())
        False
    """
    places = list(_places(model))
    for _, _, layer in reversed(places):  # those inside of others first
        if is_adapter(layer):
            _merge(layer)
    for parent, name, layer in places:
        parent._modules[name] = _plain(layer)
    for part in model.modules():
        vars(part).pop("peft_config", None)  # by which peft knows networks with adapters


def _merge(layer: Any) -> None:
    """Leave the layer's own weights as they count now: with the adapter, unless it is off."""
    on = not layer.disable_adapters
    if on and not layer.merged:
        layer.merge(safe_merge=True)
    if not on and layer.merged:
        layer.unmerge()


def is_adapter(module: Any) -> bool:
    """Whether a module is a layer of peft around one of the network's own."""
    kind = type(module)
    return hasattr(kind, "adapter_layer_names") and hasattr(kind, "get_base_layer")


def _is_whole(module: Any) -> bool:
    """Whether a module is one of `modules_to_save`."""
    return "original_module" in module._modules and "modules_to_save" in module._modules


def _plain(layer: Any) -> nn.Module:
    """The network's own layer that a layer of peft runs."""
    if is_adapter(layer):
        return layer.get_base_layer()
    active = [] if layer.disable_adapters else layer.active_adapters
    copies = [layer.modules_to_save[name] for name in active if name in layer.modules_to_save]
    return copies[0] if copies else layer.original_module


def _places(module: nn.Module, seen: set[int] | None = None) -> Iterator[Place]:
    """Where layers of peft are; not inside of them, but inside of the layers that they run."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    for name, child in list(module._modules.items()):
        if child is None:
            continue
        if is_adapter(child) or _is_whole(child):
            yield module, name, child
            child = _plain(child)
        yield from _places(child, seen)


def _put(module: nn.Module, adapters: Mapping[int, nn.Module]) -> None:
    """Put adapters wherever the layers are that they run, by the `id` of these."""
    seen: set[int] = set()

    def visit(part: nn.Module) -> None:
        if id(part) in seen:
            return
        seen.add(id(part))
        for name, child in part._modules.items():
            if child is not None:
                visit(_plain(child) if is_adapter(child) or _is_whole(child) else child)
                part._modules[name] = adapters.get(id(child), child)

    visit(module)
