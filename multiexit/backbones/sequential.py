"""A stem and a list of stages: everything whose trunk is a chain of modules.

Letters: B batch rows, C channels, H width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multiexit.backbones.base import Backbone, Carry
from multiexit.modes import quiet


class SequentialBackbone(Backbone):
    """`x_0 = stem(x)`, `x_{i+1} = stage_i(x_i)`, feature `f_i = norm(x_{i+1})`.

    Args:
        stem: what comes before the first stage.
        stages: the chain; one feature, so one possible exit, after each.
        example: one input row [1, …]; it is run through once to learn the features' shapes.
        norm: applied to each feature but not to what flows on (a pre-norm ViT's final norm).
        pool: how a linear head pools: `"mean"`, or `"first"` for a class token.
        spec, classifier: as in `Backbone`.

    Raises:
        ValueError: no stages, or the chain can't run the example.
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        example: Tensor,
        norm: nn.Module | None = None,
        pool: str = "mean",
        spec: dict[str, Any] | None = None,
        classifier: nn.Linear | None = None,
    ):
        shapes = _feature_shapes(stem, stages, example, norm)
        super().__init__(shapes, pool=pool, spec=spec, classifier=classifier)
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.norm = nn.Identity() if norm is None else norm
        self._example = example

    def start(self, x: Tensor) -> Carry:
        return {"x": self.stem(x)}

    def stage(self, carry: Carry, index: int) -> tuple[Carry, Tensor]:
        x = self.stages[index](carry["x"])
        return {"x": x}, self.norm(x)

    def stage_module(self, index: int) -> nn.Module:
        return self.stages[index]

    def example_inputs(self, batch: int = 1) -> dict[str, Tensor]:
        example = _like_parameters(self._example, self)
        return {"x": example.expand(batch, *example.shape[1:])}


def split(
    module: nn.Module, stages: Sequence[str | nn.Module], stem: Sequence[str | nn.Module] = ()
) -> tuple[nn.Sequential, list[nn.Module]]:
    """Look up a stem and stages in a module by name, e.g. `stem=["conv1"], stages=["layer1.0"]`.

    Raises:
        ValueError: a name that the module lacks; the message lists the names at that level.
    """
    return nn.Sequential(*(_find(module, part) for part in stem)), [
        _find(module, part) for part in stages
    ]


def guess_example(module: nn.Module) -> Tensor:
    """One input row that fits the first layer with weights, for chains that come without one.

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


def _like_parameters(example: Tensor, module: nn.Module) -> Tensor:
    """On the module's device; numbers (not tokens) in its precision."""
    p = next(module.parameters(), None)
    if p is None:
        return example
    return example.to(p.device, p.dtype if example.is_floating_point() else example.dtype)


def _find(module: nn.Module, part: str | nn.Module) -> nn.Module:
    if isinstance(part, nn.Module):
        return part
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


def _feature_shapes(
    stem: nn.Module, stages: Sequence[nn.Module], example: Tensor, norm: nn.Module | None
) -> list[tuple[int | None, ...]]:
    if not stages:
        raise ValueError("a backbone needs at least one stage; got none")
    whole = nn.ModuleList([stem, *stages, *([norm] if norm is not None else [])])
    shapes: list[tuple[int | None, ...]] = []
    try:
        with torch.no_grad(), quiet(whole):
            x = stem(_like_parameters(example, whole))
            for index, stage in enumerate(stages):
                x = stage(x)
                if not isinstance(x, Tensor) or x.ndim < 2:
                    raise ValueError(f"stage {index} gives no [B, …] tensor but {type(x).__name__}")
                shape = tuple((x if norm is None else norm(x)).shape[1:])
                shapes.append((None, shape[1]) if len(shape) == 2 else shape)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"stem and stages don't run as a chain on an input of shape {tuple(example.shape)}: "
            f"{error}. Pass input_shape= if the input should look different, or name other stages."
        ) from error
    return shapes
