"""A chain's description in a backbone's spec, and the parts that a backbone is made of by it."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from multiexit.backbones import infer_layout, layouts
from multiexit.backbones.layers import forward_calls
from multiexit.backbones.layers.endings import Ending
from multiexit.backbones.layers.forward_calls import Call, LayerChain
from multiexit.backbones.layers.recording import Batch, Recording
from multiexit.backbones.layers.shell import make_shell
from multiexit.files import schema


def shapes_and_layouts(
    module: nn.Module, recording: Recording, layout: str | Sequence[str] | None
) -> tuple[list[tuple[int | None, ...]], list[str]]:
    """The features' shapes without the batch, and their layouts.

    Raises:
        ValueError: a layout that can't be told, or one that doesn't fit.
    """
    shapes: list[tuple[int | None, ...]] = [tuple(f.shape[1:]) for f in recording.features]
    if layout is not None:
        return shapes, layouts.resolve(layout, shapes)
    parts = dict(module.named_modules())

    @cache
    def resized() -> list[Tensor | None]:
        calls = _calls_on_other_size(module, recording.batch)
        outputs = {call.name: call.output for call in calls}
        return [outputs.get(recording.chain.layers[end]) for end in recording.chain.ends]

    ends = {call.name: call.ended for call in recording.calls}
    names = []
    for stage, (end, feature) in enumerate(
        zip(recording.chain.ends, recording.features, strict=True)
    ):
        until = ends[recording.chain.layers[end]]
        before = [(parts[c.name], c.input, c.output) for c in recording.calls if c.ended <= until]
        behind = [(parts[c.name], c.input, c.output) for c in recording.calls if c.ended > until]
        other = lambda stage=stage: resized()[stage]  # noqa: E731
        names.append(infer_layout.from_calls(stage, feature, before, behind, other))
    return shapes, names


def _calls_on_other_size(module: nn.Module, batch: Batch) -> list[Call]:
    """The calls for rows of other sizes; none where the network takes no others."""
    inputs = {}
    for name, x in batch.inputs.items():
        assert isinstance(x, Tensor)
        grown = [2 * size if size < 64 else size + 64 for size in x.shape[2:]]
        inputs[name] = x.new_zeros(*x.shape[:2], *grown)
    try:
        return forward_calls.trace(module, inputs)[0]
    except Exception:  # whatever a network says to a size that it doesn't take
        return []


def describe_chain(
    first_run: Recording, shapes: Sequence[Any], names: Sequence[str]
) -> dict[str, Any]:
    """A chain's description, by which it is laid out without a run: for `skeleton`."""
    return {
        "layers": list(first_run.chain.layers),
        "ends": list(first_run.chain.ends),
        "late": first_run.late,
        "shapes": [list(shape) for shape in shapes],
        "layouts": list(names),
    } | ({} if first_run.turned is None else {"turned": list(first_run.turned)})


def skeleton(module: nn.Module, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The parts and facts of a network that can't be run, such as one without values.

    Args:
        module: the network.
        spec: its description.

    Returns:
        The arguments of a `RecordedBackbone`, but for the example and the classifier.

    Raises:
        ValueError: layers that the network doesn't have.
    """
    described = spec["chain"]
    chain = LayerChain(tuple(described["layers"]), tuple(described["ends"]))
    if list(chain.ends) != sorted({*chain.ends}) or chain.ends[-1] != len(chain.layers) - 1:
        raise schema.wrong("backbone.chain.ends", described["ends"], "places of layers, in order")
    try:
        layers = [module.get_submodule(name) for name in chain.layers]
        norm = module.get_submodule(spec["norm"]) if spec.get("norm") else None
    except AttributeError as error:
        raise ValueError(f"backbone.chain: {error}") from error
    blank = torch.zeros(1, 1, device="cpu")
    calls = [Call(name, blank, blank, 0, 0, blank, 0, 0) for name in chain.layers]
    shell = make_shell(module, calls, set(described["late"]))
    return {
        "shell": shell,
        "layers": layers,
        "chain": chain,
        "kinds": {},
        "norm": norm,
        "turned": tuple(described["turned"]) if "turned" in described else None,
        "feature_shapes": [tuple(shape) for shape in described["shapes"]],
        "layouts": described["layouts"],
        "pool": spec["pool"],
        "spec": spec,
    }


def parts(module: nn.Module, recording: Recording, ending: Ending | None) -> dict[str, Any]:
    """The arguments of a `RecordedBackbone` that a network's parts are."""
    layers = [module.get_submodule(name) for name in recording.chain.layers]
    norm = module.get_submodule(ending.norm) if ending and ending.norm else None
    return {
        "shell": recording.shell,
        "layers": layers,
        "chain": recording.chain,
        "kinds": recording.kinds,
        "norm": norm,
        "turned": recording.turned,
    }
