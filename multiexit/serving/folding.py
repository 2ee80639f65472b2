"""Convolutional models made ready to be run only: their batch norms folded, their memory laid out.

Letters: C channels.
"""

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from multiexit.model.model import MultiExitModel
from multiexit.runtime import evaluating

Pairs = list[tuple[str, str]]
TOLERANCE = 1e-3  # of the largest logit; eight roundings where a type is coarser


@torch.no_grad()
def for_inference(model: MultiExitModel) -> MultiExitModel:
    """Make a faster model with the same answers, for running only.

    In evaluation a batch norm is a scale and a shift per channel, which the convolution before it
    can do too: `w ← w γ / √(σ² + ε)`, `b ← (b − μ) γ / √(σ² + ε) + β`. Which convolution that is
    shows in a run of the backbone's example. Weights of images are laid out channels last, which
    CPUs and half-precision GPUs are faster with.

    An `Engine` does this by itself, and then looks at each call whether the model has changed. An
    engine of the copy has nothing to look at, and runs it for a row alone too.

    Args:
        model: trained; it stays as it is.

    Returns:
        A copy in evaluation mode: what is learnt later doesn't reach it, and it can be neither
        trained nor saved. The model itself if there is nothing to gain.

    Example:
        >>> import torch, multiexit as mx
        >>> model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=10).eval()
        >>> engine = mx.Engine(mx.for_inference(model), mx.MaxProb(0.9))
        >>> engine.predict(torch.rand(1, 3, 32, 32)).exit_B.shape
        torch.Size([1])
    """
    weight = next(model.parameters(), torch.zeros(0))
    if "image" not in model.backbone.layouts:
        return model
    inputs = {
        name: _noise(value, weight) for name, value in model.backbone.example_inputs().items()
    }
    with evaluating(model):
        pairs = _foldable_pairs(model, inputs)
        folded = _folded_copy(model, pairs) if pairs else model
        if pairs and not _same_answers(folded(**inputs), model(**inputs)):
            folded = model
    layout = torch.channels_last
    pays = weight.is_cpu or weight.element_size() == 2
    images = (p for p in folded.parameters() if p.ndim == 4)
    if pays and not all(p.is_contiguous(memory_format=layout) for p in images):
        folded = copy.deepcopy(model).eval() if folded is model else folded
        folded.to(memory_format=layout)  # type: ignore[call-overload]
    folded.runs_only = folded is not model or model.runs_only
    return folded


def _foldable_pairs(model: nn.Module, inputs: dict[str, Tensor]) -> Pairs:
    """Names of convolutions and of the batch norms that read what they give."""
    conv_outputs: dict[int, tuple[str, Tensor]] = {}  # tensors are kept, so that no id comes twice
    calls: Counter[str] = Counter()
    pairs: Pairs = []

    def record(name: str, module: nn.Module, args: Any, output: Any) -> None:
        calls[name] += 1
        if isinstance(module, nn.Conv2d):
            conv_outputs[id(output)] = (name, output)
        elif id(args[0]) in conv_outputs:
            pairs.append((conv_outputs[id(args[0])][0], name))

    hooks = [
        module.register_forward_hook(lambda m, args, out, name=name: record(name, m, args, out))
        for name, module in model.named_modules()
        if type(module) is nn.Conv2d or (isinstance(module, nn.BatchNorm2d) and module.affine)
    ]
    try:
        model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1]


def _folded_copy(model: MultiExitModel, pairs: Pairs) -> MultiExitModel:
    folded = copy.deepcopy(model)
    for conv, norm in pairs:
        before, after = folded.get_submodule(conv), folded.get_submodule(norm)
        assert isinstance(before, nn.Conv2d)
        assert isinstance(after, nn.BatchNorm2d)
        dtype = before.weight.dtype
        if after.running_mean is not None:
            fused = fuse_conv_bn_eval(before.float(), after.float())
            folded.set_submodule(conv, fused.to(dtype))
            # What a batch norm has inside, as timm's have the activation, comes after it.
            folded.set_submodule(norm, nn.Sequential(*after.children()))
    return folded.eval()


def _same_answers(folded: Tensor, original: Tensor) -> bool:
    tolerance = max(TOLERANCE, 8 * torch.finfo(original.dtype).eps)
    return bool((folded - original).abs().max() <= tolerance * original.abs().max())


def _noise(example: Tensor, weight: Tensor) -> Tensor:
    """Numbers of which none is like another, of an example's shape, on the model's device."""
    if not example.is_floating_point():
        return example.to(weight.device)
    noise = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
    return noise.to(weight.device, example.dtype)
