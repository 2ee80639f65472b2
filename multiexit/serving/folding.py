"""Convolutional models made ready to be run only: their batch norms folded, their memory laid out.

Letters: C channels.
"""

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from multiexit.model.model import MultiExitModel
from multiexit.runtime import buffers_kept

Pairs = Sequence[tuple[str, str]]
TOLERANCE = 1e-3  # of an exit's largest logit; eight roundings where a type is coarser


def for_inference(model: MultiExitModel) -> MultiExitModel:
    """Make a faster model with the same answers, for running only.

    In evaluation a batch norm is a scale and a shift per channel, which the convolution before it
    can do too: `w ← w γ / √(σ² + ε)`, `b ← (b − μ) γ / √(σ² + ε) + β`. Which convolution that is
    shows in runs of the backbone's example, in which nothing else may read what it gives. Weights
    of images are laid out channels last, which CPUs and half-precision GPUs are faster with.

    An `Engine` does this by itself, and then looks at each call whether the model has changed. An
    engine of the copy has nothing to look at, and runs it for a row alone too.

    Args:
        model: trained; it stays as it is.

    Returns:
        A copy in evaluation mode: what is learnt later doesn't reach it, and it can be neither
        trained nor saved. The model itself if there is nothing to gain, or if it can't be copied.

    Raises:
        ValueError: no `MultiExitModel`.

    Example:
        >>> import torch, multiexit as mx
        >>> model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=10).eval()
        >>> engine = mx.Engine(mx.for_inference(model), mx.MaxProb(0.9))
        >>> engine.predict(torch.rand(1, 3, 32, 32)).exit_B.shape
        torch.Size([1])
    """
    if not isinstance(model, MultiExitModel):
        raise ValueError(f"this takes a MultiExitModel, got {type(model).__name__}")
    if model.runs_only or "image" not in model.backbone.layouts:
        return model
    try:
        with torch.inference_mode(False), torch.no_grad():
            return _faster_copy(model) or model
    except Exception:  # whatever a network of one's own says to being copied and run: it runs as is
        return model


def _faster_copy(model: MultiExitModel) -> MultiExitModel | None:
    """A copy that gives the same logits for noise; None if there is nothing to gain."""
    if any("training" not in vars(module) for module in model.modules()):  # scripted, compiled
        return None
    weight = next(model.parameters(), torch.zeros(0))
    inputs = {k: _noise(v, weight) for k, v in model.backbone.example_inputs().items()}
    tried = copy.deepcopy(model).eval()
    wanted_MBC = _logits(tried, inputs)
    pays = weight.is_cpu or weight.element_size() == 2
    pairs = _foldable_pairs(tried, inputs)
    for chosen in (pairs, ()) if pairs else ((),):
        made = copy.deepcopy(model).eval()
        _fold(made, chosen)
        if not (pays and _lay_out(made)) and not chosen:
            return None
        with buffers_kept(made):
            same = _same_answers(_logits(made, inputs), wanted_MBC)
        if same:
            made.backbone.runs_only = True
            return made
    return None


def _logits(model: MultiExitModel, inputs: dict[str, Tensor]) -> Tensor:
    """Of all exits, whatever a subclass makes of them."""
    return MultiExitModel.forward(model, **inputs)


def _lay_out(model: nn.Module) -> bool:
    """Lay weights of images out channels last; whether that changed any."""
    layout, changed = torch.channels_last, False
    for p in model.parameters():
        if p.ndim == 4 and not p.is_contiguous(memory_format=layout):
            p.data, changed = p.data.contiguous(memory_format=layout), True
    return changed


class _Uses(TorchDispatchMode):
    """Counts how often each tensor is read or written by an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[int] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.of.update(id(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor))
        return func(*args, **kwargs)


def _foldable_pairs(model: MultiExitModel, inputs: dict[str, Tensor]) -> Pairs:
    """Names of convolutions and of the batch norms that read what they give, and alone do.

    They are so in every run: of one row and of several, of small numbers and large ones, and of
    images half as large, where the network takes these.
    """
    found = _pairs_of(model, inputs)
    for others in _other_inputs(inputs):
        try:
            again = set(_pairs_of(model, others))
        except Exception:  # it takes no such images
            continue
        found = [pair for pair in found if pair in again]
    return found


def _pairs_of(model: MultiExitModel, inputs: dict[str, Tensor]) -> list[tuple[str, str]]:
    """Those of one run."""
    uses = _Uses()
    given: dict[int, tuple[str, Tensor]] = {}  # tensors are kept, so that no id comes twice
    calls: Counter[str] = Counter()
    read: list[tuple[str, str, int]] = []

    def record(name: str, module: nn.Module, args: Any, output: Any) -> None:
        calls[name] += 1
        if isinstance(module, nn.Conv2d):
            given[id(output)] = (name, output)
            uses.of[id(output)] = 0  # those so far were of a tensor that is gone
        elif args and id(args[0]) in given:
            read.append((given[id(args[0])][0], name, id(args[0])))

    parts = [(name, part) for name, part in model.named_modules() if _is_plain(part)]
    hooks = [
        part.register_forward_hook(lambda m, args, out, name=name: record(name, m, args, out))
        for name, part in parts
    ]
    try:
        with uses:
            _logits(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        (conv, norm)
        for conv, norm, tensor in read
        if calls[conv] == calls[norm] == uses.of[tensor] == 1
    ]


def _is_plain(module: nn.Module) -> bool:
    """Whether it is a convolution or a batch norm that does what its kind does, and no more."""
    if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
        return False
    kind = type(module)
    with_activation = kind.__module__.startswith("timm.") and kind.__name__ == "BatchNormAct2d"
    if kind is nn.BatchNorm2d or with_activation:
        return bool(module.affine)
    return kind is nn.Conv2d


def _other_inputs(inputs: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    numbers = {name for name, value in inputs.items() if value.is_floating_point()}
    three = {name: value.expand(3, *value.shape[1:]) for name, value in inputs.items()}
    yield {name: 10 * value if name in numbers else value for name, value in three.items()}
    images = {name for name in numbers if inputs[name].ndim == 4}
    yield {
        name: value[..., ::2, ::2] if name in images else value for name, value in inputs.items()
    }


def _fold(model: MultiExitModel, pairs: Pairs) -> None:
    for conv, norm in pairs:
        before, after = model.get_submodule(conv), model.get_submodule(norm)
        assert isinstance(before, nn.Conv2d)
        assert isinstance(after, nn.BatchNorm2d)
        dtype = before.weight.dtype
        if after.running_mean is not None:
            wide = torch.promote_types(dtype, torch.float32)
            fused = fuse_conv_bn_eval(before.to(wide), after.to(wide))
            model.set_submodule(conv, fused.to(dtype))
            # What a batch norm has inside, as timm's have the activation, comes after it.
            model.set_submodule(norm, nn.Sequential(*after.children()))
    model.eval()


def _same_answers(folded_MBC: Tensor, original_MBC: Tensor) -> bool:
    tolerance = max(TOLERANCE, 8 * torch.finfo(original_MBC.dtype).eps)
    far_M = (folded_MBC - original_MBC).abs().flatten(1).amax(1)
    return bool((far_M <= tolerance * original_MBC.abs().flatten(1).amax(1)).all())


def _noise(example: Tensor, weight: Tensor) -> Tensor:
    """Numbers of which none is like another, of an example's shape, on the model's device."""
    if not example.is_floating_point():
        return example.to(weight.device)
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    return noise.to(weight.device, example.dtype)
