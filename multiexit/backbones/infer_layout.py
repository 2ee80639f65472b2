"""Layouts of a chain's features, told by its layers or by runs on other sizes.

Letters: B batch rows, C channels, L length, T tokens, H width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from multiexit.backbones import layouts
from multiexit.backbones.layouts import LAYOUTS

_WIDTH_FIRST = (_ConvNd, _NormBase, nn.GroupNorm)
_WIDTH_LAST = (
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.RNNBase,
)


class Chain(NamedTuple):
    """`x_0 = stem(x)`, `x_{i+1} = stage_i(x_i)`, feature `f_i = norm(x_{i+1})`."""

    stem: nn.Module
    stages: Sequence[nn.Module]
    norm: nn.Module

    def features(self, x: Tensor) -> Iterator[Tensor]:
        """The feature [B, …] of each stage in turn.

        Raises:
            ValueError: an input that they don't take, or a stage that gives something else than a
                tensor with a row for each row.
        """
        shape, rows = tuple(x.shape), len(x)
        x = _apply(self.stem, x, shape)
        for index, stage in enumerate(self.stages):
            x = _apply(stage, x, shape)
            if not isinstance(x, Tensor) or x.ndim < 2:
                raise ValueError(f"stage {index} gives no [B, …] tensor but {_description(x)}")
            if len(x) != rows:
                raise ValueError(
                    f"stage {index} gives {tuple(x.shape)} for {rows} rows: the batch must be the "
                    "first dimension"
                )
            yield _apply(self.norm, x, shape)


def _apply(module: nn.Module, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    try:
        return module(x)
    except Exception as error:  # whatever a part says to an input that it doesn't take
        raise ValueError(
            f"stem and stages don't run as a chain on an input of shape {shape}: {error}. Pass "
            "input_shape= if the input should look different, or name other stages"
        ) from error


def _description(x: Any) -> str:
    return f"one of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__


class _LayerCall(NamedTuple):
    """One call of a layer that says where the width is.

    Args:
        width: the dimension of the width in what it makes, 1 or -1.
        input, output: of the call.
    """

    width: int
    input: Any
    output: Tensor


def infer(
    chain: Chain, example: Tensor, layout: str | Sequence[str] | None
) -> tuple[list[tuple[int, ...]], list[str]]:
    """The shape (without the batch) and the layout of each stage's feature.

    The layout is that of the layer that made the feature or that reads it, if it is that very
    tensor; else that of the last layer with weights, or of the next that reads as many
    dimensions, if a width of that size stands where the layer has it and nowhere else; else the
    width is the one dimension that keeps its size when the input's other sizes change; else, of a
    square image, the one that isn't of its square.

    Args:
        chain: in evaluation mode.
        example: one input row.
        layout: the user's word: one for all stages whose rank it has, or one for each stage.

    Raises:
        ValueError: a layout that can't be told, or a named one that doesn't fit.
    """
    calls: list[_LayerCall] = []
    features, ends = [], []
    with _record_calls(chain, calls):
        for feature in chain.features(example):
            features.append(feature)
            ends.append(len(calls))
    shapes = [tuple(feature.shape[1:]) for feature in features]
    fits_none = isinstance(layout, str) and all(LAYOUTS[layout].rank != len(s) for s in shapes)
    if layout is not None and (not isinstance(layout, str) or fits_none):
        return shapes, layouts.resolve(layout, shapes)
    varying: list[set[int]] = []
    names = []
    for stage, (feature, end) in enumerate(zip(features, ends, strict=True)):
        candidates = layouts.of_rank(feature.ndim - 1)
        if layout in candidates:
            candidates = [layout]
        if len(candidates) > 1:
            width = _width_from_layers(feature, calls, end)
            if width is None:
                varying = varying or _varying_dims(chain, example, features)
                fixed = set(range(1, feature.ndim)) - varying[stage]
                width = fixed.pop() if len(fixed) == 1 else _width_of_square(feature, example)
            fitting = [name for name in candidates if LAYOUTS[name].width + 1 == width]
        else:
            fitting = candidates
        if len(fitting) != 1:
            raise _untold(stage, shapes[stage], candidates)
        names += fitting
    return shapes, names


def from_calls(
    stage: int,
    feature: Tensor,
    before: Sequence[tuple[nn.Module, Any, Any]],
    behind: Sequence[tuple[nn.Module, Any, Any]],
    resized: Callable[[], Tensor | None],
) -> str:
    """The layout of a feature, told by the calls of layers in a run of its network.

    Args:
        stage: its number, for messages.
        feature: [B, …].
        before, behind: modules with the first tensors that they read and gave, in order, up to the
            feature and after it.
        resized: gives the same feature of an input of other sizes, if there can be one.

    Raises:
        ValueError: a layout that can't be told.
    """
    candidates = layouts.of_rank(feature.ndim - 1)
    if len(candidates) == 1:
        return candidates[0]
    calls = [[_call(*call) for call in part if _shows_width(call[0])] for part in (before, behind)]
    made, read = ([call for call in part if call is not None] for part in calls)
    width = _width_from_layers(feature, [*made, *read], len(made))
    other = resized() if width is None else None
    if other is not None and other.ndim == feature.ndim:
        fixed = [d for d in range(1, feature.ndim) if other.shape[d] == feature.shape[d]]
        width = fixed[0] if len(fixed) == 1 else None
    fitting = [name for name in candidates if LAYOUTS[name].width + 1 == width]
    if len(fitting) != 1:
        raise _untold(stage, tuple(feature.shape[1:]), candidates)
    return fitting[0]


def _call(module: nn.Module, input: Any, output: Any) -> _LayerCall | None:
    if not isinstance(output, Tensor) or output.ndim < 2:
        return None
    width = 1 if isinstance(module, _WIDTH_FIRST) and output.ndim > 2 else -1
    return _LayerCall(width, input, output)


def _untold(stage: int, shape: Sequence[int], candidates: Sequence[str]) -> ValueError:
    return ValueError(
        f"stage {stage} gives a feature of shape (B, {', '.join(map(str, shape))}), and it can't "
        "be told what its dimensions are: pass layout=, one of "
        f"{layouts.listing(candidates or tuple(LAYOUTS))}"
    )


def _width_from_layers(feature: Tensor, calls: Sequence[_LayerCall], end: int) -> int | None:
    """The dimension of the width, if the layers leave no doubt."""
    makers = [call for call in calls[:end] if call.output is feature]
    readers = [call for call in calls[end:] if call.input is feature]
    if makers or readers:
        return (makers[-1:] + readers)[0].width % feature.ndim
    last = [(call, call.output) for call in calls[:end][-1:]]
    following = [(call, call.input) for call in calls[end:] if isinstance(call.input, Tensor)]
    following = [(call, read) for call, read in following if read.ndim == feature.ndim]
    for call, tensor in [*last, *following[:1]]:
        if call.width == 1 and tensor.ndim != feature.ndim:
            continue
        size, width = tensor.shape[call.width], call.width % feature.ndim
        if [dim for dim in range(1, feature.ndim) if feature.shape[dim] == size] == [width]:
            return width
    return None


def _width_of_square(feature: Tensor, example: Tensor) -> int | None:
    """The dimension that isn't one of two equal ones beside each other, for a square image."""
    if feature.ndim != 4 or example.ndim != 4 or example.shape[2] != example.shape[3]:
        return None
    _, a, b, c = feature.shape
    return {(True, False): 3, (False, True): 1}.get((a == b, b == c))


def _varying_dims(chain: Chain, example: Tensor, features: Sequence[Tensor]) -> list[set[int]]:
    """The dimensions of each stage's feature that change with a size of the input."""
    varying: list[set[int]] = [set() for _ in features]
    for dim in range(1, example.ndim):
        size = example.shape[dim]
        for other in (2 * size if size < 64 else size + 64, size // 2):
            shape = list(example.shape)
            shape[dim] = other
            try:
                resized = list(chain.features(example.new_zeros(shape)))
            except ValueError:  # a size that it doesn't take
                continue
            if [f.ndim for f in resized] != [f.ndim for f in features]:
                continue
            for stage, (new, old) in enumerate(zip(resized, features, strict=True)):
                varying[stage] |= {d for d in range(old.ndim) if new.shape[d] != old.shape[d]}
            break
    return varying


@contextmanager
def _record_calls(chain: Chain, calls: list[_LayerCall]) -> Iterator[None]:
    """Inside, calls of layers that say where the width is are written down in their order."""

    def note(module: nn.Module, args: Any, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        call = _call(module, args[0] if args else None, tensor)
        if call is not None:
            calls.append(call)

    whole = nn.ModuleList([chain.stem, *chain.stages, chain.norm])
    hooks = [layer.register_forward_hook(note) for layer in whole.modules() if _shows_width(layer)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _shows_width(layer: nn.Module) -> bool:
    """Whether it is a layer of torch whose own forward tells where the width is."""
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm) and len(layer.normalized_shape) != 1:
        return False
    is_listed = isinstance(layer, (*_WIDTH_FIRST, *_WIDTH_LAST))
    return is_listed and type(layer).forward.__module__.startswith("torch.nn.")
