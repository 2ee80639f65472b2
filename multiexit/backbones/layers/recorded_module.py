"""Any network that takes one tensor, staged by the list of layers that its own forward runs over.

Letters: B batch rows, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from multiexit.backbones.layers import recording, tails
from multiexit.backbones.layers.recorded import RecordedBackbone
from multiexit.backbones.layers.recording import Batch, Recording
from multiexit.backbones.running import random_rows


def from_module(
    module: nn.Module,
    example: Tensor,
    layout: str | Sequence[str] | None = None,
    spec: dict[str, Any] | None = None,
) -> RecordedBackbone:
    """Stage a network by its layers; what comes behind the last one is its own head.

    Args:
        module: takes one tensor.
        example: one input row.
        layout: of the features; None where the layers tell it.
        spec: by which the network is made again; how it is taken apart is put in.

    Raises:
        ValueError: no list of layers that run one after another, or one that computes something
            else than the network's own forward; an answer of which it can't be told how the last
            layer leads to it.
    """
    batches = [Batch({"": random_rows(example, module, rows)}, rows) for rows in (2, 3)]
    found = recording.record_layers(module, batches)
    shapes, names = recording.shapes_and_layouts(module, found, batches[0], layout)
    shapes = [
        (None, shape[-1]) if name == "tokens" else shape
        for shape, name in zip(shapes, names, strict=True)
    ]
    target = found.output
    if not isinstance(target, Tensor):
        raise ValueError(f"its forward gives a {type(target).__name__}, not one tensor")
    ending = recording.find_ending(module, found, target, None)
    if ending is None:  # something beside the layers may have a part in it
        raise ValueError(f"what leads from {found.chain.layers[-1]!r} to its answer can't be told")
    described = {
        "pool": _pool(ending, names),
        "chain": recording.describe_chain(found, shapes, names),
        **recording.describe(ending),
    }
    whole = None if spec is None else {**spec, **described}
    classes = target.shape[1] if target.ndim == 2 else 0
    backbone = _backbone(module, found, example, described, classes, whole)
    recording.check(backbone, module, found, batches)
    return backbone


def stage(module: nn.Module, example: Tensor, spec: dict[str, Any]) -> RecordedBackbone:
    """Stage a network as `from_module` did before, as its spec says; compare nothing.

    Args:
        module: made again by the spec.
        example: one input row.
        spec: that of what `from_module` gave.

    Raises:
        ValueError: a spec that isn't of this network.
    """
    if any(p.is_meta for p in module.parameters()):
        arguments = recording.skeleton(module, spec)
        return RecordedBackbone(
            **arguments, example={"": example}, classifier=_head(module, spec, 0)
        )
    batches = [Batch({"": random_rows(example, module, rows)}, rows) for rows in (2, 3)]
    found = recording.record_layers(module, batches)
    classes = found.output.shape[-1] if isinstance(found.output, Tensor) else 0
    return _backbone(module, found, example, spec, classes, spec)


def _backbone(
    module: nn.Module,
    found: Recording,
    example: Tensor,
    described: Mapping[str, Any],
    classes: int,
    spec: dict[str, Any] | None,
) -> RecordedBackbone:
    return RecordedBackbone(
        **recording.parts(module, found, recording.described_ending(described)),
        example={"": example},
        feature_shapes=[tuple(shape) for shape in described["chain"]["shapes"]],
        layouts=described["chain"]["layouts"],
        pool=described["pool"],
        classifier=_head(module, described, classes),
        spec=spec,
    )


def _head(module: nn.Module, described: Mapping[str, Any], classes: int) -> Any:
    ending = recording.described_ending(described)
    return None if ending is None else recording.classifier(module, ending, classes)


def _pool(ending: recording.Ending | None, names: Sequence[str]) -> str:
    if ending is None or names[-1] != "tokens":
        return "mean"
    return next(tails.pooling(ending.names), "mean")
