"""A stem and a list of stages: everything whose trunk is a chain of modules.

Letters: B batch rows, C channels, H width.
"""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from multiexit.backbones import layouts
from multiexit.backbones.base import Backbone, Carry
from multiexit.backbones.classifier import NetworkHead
from multiexit.backbones.infer_layout import Chain, infer
from multiexit.backbones.one_input import one_tensor
from multiexit.backbones.running import in_precision, like_parameters
from multiexit.backbones.verify import check_rows
from multiexit.backbones.verify_parts import check_parts, part_names
from multiexit.runtime import evaluating

LARGEST_ROW = 2**30
"""Numbers in one input row."""


class SequentialBackbone(Backbone):
    """`x_0 = stem(x)`, `x_{i+1} = stage_i(x_i)`, feature `f_i = norm(x_{i+1})`.

    Args:
        stem: what comes before the first stage.
        stages: the chain; one feature, so one possible exit, after each.
        example: one input row [1, …]; it is run through once to learn the features' shapes.
        norm: applied to each feature but not to what flows on (a pre-norm ViT's final norm).
        pool: how a linear head pools: `"mean"`, or `"first"` for a class token.
        spec, classifier: as in `Backbone`.
        layout: what the features' dimensions are, one of `multiexit.backbones.layouts.LAYOUTS` for
            all stages whose rank it has, or one for each stage; None where the layers tell it.

    Raises:
        ValueError: no stages, the chain can't run the example, or a layout that can't be told.

    Example:
        >>> import torch, multiexit as mx
        >>> from torch import nn
        >>> stages = [nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3)]
        >>> backbone = mx.SequentialBackbone(nn.Linear(4, 8), stages, example=torch.zeros(1, 4))
        >>> [feature.shape for feature in backbone.features(torch.rand(2, 4))]
        [torch.Size([2, 8]), torch.Size([2, 8]), torch.Size([2, 8])]
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        example: Tensor,
        norm: nn.Module | None = None,
        pool: str = "mean",
        spec: dict[str, Any] | None = None,
        classifier: NetworkHead | nn.Linear | None = None,
        layout: str | Sequence[str] | None = None,
    ):
        norm = nn.Identity() if norm is None else norm
        shapes, layouts = _shapes_and_layouts(Chain(stem, stages, norm), example, layout)
        super().__init__(shapes, pool=pool, spec=spec, classifier=classifier, layouts=layouts)
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.norm = norm
        self._example = example
        self._accepted_dtypes: set[torch.dtype] = set()  # beside the example's kind

    @one_tensor
    def start(self, x: Tensor) -> Carry:
        if x.is_floating_point() != self._example.is_floating_point():
            self._check_dtype(x.dtype)
        return {"x": self.stem(in_precision(x, self))}

    def stage(self, carry: Carry, index: int) -> tuple[Carry, Tensor]:
        x = self.stages[index](carry["x"])
        return {"x": x}, self.norm(x)

    def stage_module(self, index: int) -> nn.Module:
        return self.stages[index]

    def example_inputs(self, batch: int = 1) -> dict[str, Tensor]:
        example = like_parameters(self._example, self)
        return {"x": example.expand(batch, *example.shape[1:])}

    def _check_dtype(self, dtype: torch.dtype) -> None:
        """Refuse a kind of number that isn't the example's and that the chain doesn't take.

        One row is run, once for each kind: a stem may turn whole numbers into fractions itself.
        """
        if dtype in self._accepted_dtypes:
            return
        row = like_parameters(self._example, self).to(dtype)
        try:
            with evaluating(self), torch.no_grad():
                carry = {"x": self.stem(row)}
                for index in range(self.num_stages):
                    carry, _ = self.stage(carry, index)
        except RuntimeError as error:
            raise ValueError(
                f"the input is {dtype}, and this network starts with fractions: divide images of "
                "0 to 255 by 255 and normalise them as in training; call .float() on other numbers"
                if self._example.is_floating_point()
                else f"the input is {dtype}, and this network starts with tokens: whole numbers, "
                "torch.int64"
            ) from error
        self._accepted_dtypes.add(dtype)


def from_parts(
    module: nn.Module,
    stages: Sequence[str | nn.Module],
    stem: Sequence[str | nn.Module],
    input_shape: Sequence[int] | None,
    layout: str | Sequence[str] | None,
) -> SequentialBackbone:
    """A module's parts as a chain, if that is what the module's own forward runs.

    Args:
        module: the network.
        stages, stem: its parts, or their names, in order.
        input_shape: of one input row; None is guessed from the first layer.
        layout: of the features; None where the layers tell it.

    Raises:
        ValueError: a name that the module lacks, with the names at that level; parts that aren't
            run one after another; a network that mixes the rows of a batch.
    """
    stem_modules = [_module_of(module, part) for part in stem]
    stage_modules = [_module_of(module, part) for part in stages]
    modules = nn.ModuleList([*stem_modules, *stage_modules])
    if input_shape is None:
        example = guess_example(modules)
    else:
        first_layer = next((m for m in modules.modules() if [*m.parameters(recurse=False)]), None)
        dtype = torch.long if isinstance(first_layer, nn.Embedding) else None
        example = torch.zeros(1, *sizes(input_shape), dtype=dtype)
    first = nn.Sequential(*stem_modules)
    backbone = SequentialBackbone(first, stage_modules, example, layout=layout)
    names = part_names(module, [*stem, *stages])
    own = "forward" in vars(module) or module._forward_pre_hooks or module._forward_hooks
    is_plain = type(module).forward is nn.Sequential.forward and not own
    whole = isinstance(module, nn.Sequential) and list(modules) == list(module)
    if not (is_plain and whole):
        check_parts(module, list(zip(names, modules, strict=True)), example, whole)
    check_rows(backbone.features, backbone, example)
    return backbone


def sizes(input_shape: Sequence[int]) -> list[int]:
    """The sizes of one input row.

    Raises:
        ValueError: anything but whole numbers from 1, or more of them than fit a machine.
    """
    shape = list(input_shape) if isinstance(input_shape, Iterable) else [input_shape]
    are_whole = [isinstance(size, Integral) and not isinstance(size, bool) for size in shape]
    if not shape or not all(are_whole) or min(shape) < 1 or not isinstance(input_shape, Iterable):
        raise ValueError(
            "input_shape is the shape of one input row, whole numbers from 1 such as (3, 32, 32); "
            f"got {input_shape!r}"
        )
    if math.prod(map(int, shape)) > LARGEST_ROW:
        raise ValueError(
            f"input_shape {tuple(shape)} is {math.prod(map(int, shape)):,} numbers a row; at most "
            f"{LARGEST_ROW:,}"
        )
    return [int(size) for size in shape]


def guess_example(module: nn.Module) -> Tensor:
    """One input row [1, …] that fits the first layer with weights, for chains without one.

    Convolutions get 32×32 images, linear layers a vector, embeddings eight tokens.

    Raises:
        ValueError: no such layer.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            return torch.zeros(1, layer.in_channels, 32, 32, dtype=layer.weight.dtype)
        if isinstance(layer, nn.Linear):
            return torch.zeros(1, layer.in_features, dtype=layer.weight.dtype)
        if isinstance(layer, nn.Embedding):
            return torch.zeros(1, 8, dtype=torch.long)
    raise ValueError(
        "can't tell what input this module takes: pass input_shape=, e.g. input_shape=(3, 32, 32)"
    )


def _module_of(module: nn.Module, part: str | nn.Module) -> nn.Module:
    if isinstance(part, nn.Module):
        return part
    if not isinstance(part, str):
        raise ValueError(f"stages and stem are lists of names or modules, got {part!r}")
    try:
        return module.get_submodule(part)
    except AttributeError as error:
        parent, _, _ = part.rpartition(".")
        try:
            names = [name for name, _ in module.get_submodule(parent).named_children()]
        except AttributeError:
            names = [name for name, _ in module.named_children()]
        raise ValueError(
            f"{type(module).__name__} has no module {part!r}; at that level there are {names}"
        ) from error


def _shapes_and_layouts(
    chain: Chain, example: Tensor, layout: str | Sequence[str] | None
) -> tuple[list[tuple[int | None, ...]], list[str]]:
    if not chain.stages:
        raise ValueError("a backbone needs at least one stage; got none")
    for name in [layout] if isinstance(layout, str) else layout or ():
        layouts.check_name(name)
    modules = nn.ModuleList([chain.stem, *chain.stages, chain.norm])
    with evaluating(modules), torch.no_grad():
        shapes, names = infer(chain, like_parameters(example, modules), layout)
    return [
        (None, shape[1]) if name == "tokens" else shape
        for shape, name in zip(shapes, names, strict=True)
    ], names
