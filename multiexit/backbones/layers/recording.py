"""From a network to a `RecordedBackbone`: its chain of layers is found, and compared with it.

Letters: B batch rows, T tokens.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from multiexit.backbones import infer_layout, layouts
from multiexit.backbones.base import Backbone
from multiexit.backbones.classifier import Classifier
from multiexit.backbones.layers import forward_calls, recorded, tails
from multiexit.backbones.layers.forward_calls import Call, LayerChain
from multiexit.backbones.layers.recorded import GIVES, Path
from multiexit.backbones.layers.shell import Given, feature_of, make_shell, record, result_at
from multiexit.backbones.verify import mismatch
from multiexit.files import schema
from multiexit.files.unreadable import one_line
from multiexit.runtime import evaluating


class Batch(NamedTuple):
    """Inputs that a network is tried on.

    Args:
        inputs: by name.
        rows: B.
        length: T, or the same number for all where rows have no length.
        valid_BT: which tokens are real, where there are tokens.
    """

    inputs: dict[str, Any]
    rows: int
    length: int = 0
    valid_BT: Tensor | None = None


class Recording(NamedTuple):
    """All that a `RecordedBackbone` is made of.

    Args:
        chain: its layers by name.
        late: names of the modules that run behind the last layer only.
        shell: the network with recorders in their place.
        kinds: of what they are called with.
        calls, output: of the first batch.
        features: what each stage gave for it.
    """

    chain: LayerChain
    late: list[str]
    shell: nn.Module
    kinds: dict[Path, str]
    calls: list[Call]
    output: Any
    features: list[Tensor]


def record_layers(module: nn.Module, batches: Sequence[Batch]) -> Recording:
    """Find a network's chain of layers, and what it calls them with.

    Args:
        module: the network, in any mode.
        batches: two of one length with different numbers of rows, then others.

    Raises:
        ValueError: no chain, or layers that are called with what can't be handed on.
    """
    calls, output = _first_run(module, batches[0])
    chain = forward_calls.find_chain(module, calls)
    if chain is None:
        raise ValueError("it has no list of layers that run one after another")
    by_name = {call.name: call for call in calls}
    last = by_name[chain.layers[-1]]
    late = {call.name for call in calls} - {c.name for c in calls if c.began < last.began}
    shell = make_shell(module, [by_name[name] for name in chain.layers], late)
    with evaluating(module, shell), torch.no_grad():
        given = [_recorded(shell, batch) for batch in batches]
    runs = [
        (batch.rows, batch.length, recorded.tensors_in(layers))
        for batch, layers in zip(batches, given, strict=True)
    ]
    kinds = recorded.kinds_of(runs)
    _check_shared(kinds, dict(runs[0][2]), dict(runs[1][2]))
    kinds |= _made_kinds(module, chain, batches, given, by_name)
    features = [feature_of(by_name[chain.layers[end]].result) for end in chain.ends]
    return Recording(chain, sorted(late), shell, kinds, calls, output, features)


def _check_shared(
    kinds: Mapping[Path, str], one: Mapping[Path, Tensor], other: Mapping[Path, Tensor]
) -> None:
    """Refuse what all rows share and depends on what is in them: rows of two batches may meet."""
    for path, kind in kinds.items():
        shared = kind in ("all", "fixed") and path in one and path in other
        if shared and not _same_values(one[path], other[path]):
            raise ValueError(
                f"layer {path[0]} is called with a tensor ({recorded.spelt(path)}) that all rows "
                "share and that depends on what is in them"
            )


def _same_values(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _first_run(module: nn.Module, batch: Batch) -> tuple[list[Call], Any]:
    """A run of a network as it is; its error says what it was tried on."""
    try:
        return forward_calls.trace(module, batch.inputs)
    except Exception as error:  # whatever a network says to what it doesn't take
        tried = " and ".join(
            f"{name} {list(value.shape)}"
            for name, value in batch.inputs.items()
            if isinstance(value, Tensor)
        )
        hint = "" if batch.valid_BT is not None else "; input_shape=(…) is for rows of other sizes"
        raise ValueError(
            f"its forward doesn't run on {tried} alone ({one_line(error)}){hint}"
        ) from error


def _recorded(shell: nn.Module, batch: Batch) -> list[Given]:
    try:
        return record(shell, batch.inputs)
    except ValueError:
        raise
    except Exception as error:  # whatever it does with what isn't there
        raise ValueError(
            "its forward uses what its layers give beside the feature, other than to hand it to "
            f"the next ({one_line(error)})"
        ) from error


def _made_kinds(
    module: nn.Module,
    chain: LayerChain,
    batches: Sequence[Batch],
    given: Sequence[Sequence[Given]],
    first: Mapping[str, Call],
) -> dict[Path, str]:
    """The kinds of what layers give beside the feature and others are called with."""
    made = set().union(*map(recorded.made_in, given))
    if not made:
        return {}
    second = {call.name: call for call in forward_calls.trace(module, batches[1].inputs)[0]}
    runs = []
    for batch, calls in zip(batches, (first, second), strict=False):
        tensors = [
            ((m.layer, GIVES, m.place), result_at(calls[chain.layers[m.layer]].result, m.place))
            for m in made
        ]
        runs.append((batch.rows, batch.length, tensors))
    kinds = recorded.kinds_of(runs)
    return {path: "all" if kind == "fixed" else kind for path, kind in kinds.items()}


def check(
    backbone: recorded.RecordedBackbone,
    module: nn.Module,
    first_run: Recording,
    batches: Sequence[Batch],
) -> None:
    """Refuse stages that aren't what the network's own layers give in its own forward.

    Args:
        backbone: the network in stages.
        module: the network.
        first_run: of the first batch.
        batches: as for `record_layers`. Of the second only what comes before the layers is run;
            the second row of the first runs by itself, too.

    Raises:
        ValueError: with the first layer that differs, and by how much; a network in which a row's
            answer depends on the rows or the padding beside it.
    """
    first, second, *others = batches
    together, plan = _checked(backbone, first, first_run.features)
    with evaluating(backbone), torch.no_grad():
        if backbone.begin(second.inputs)["plan"] != plan:
            raise ValueError(
                "it calls its layers with something that depends on the number of rows"
            )
    for batch in others:
        _checked(backbone, batch, _features(module, first_run.chain, batch))
    by_itself = _second_row(first)
    alone, _ = _checked(backbone, by_itself, _features(module, first_run.chain, by_itself))
    _check_alone(backbone, together, alone)


def _features(module: nn.Module, chain: LayerChain, batch: Batch) -> list[Tensor | None]:
    """What each stage's last layer gives in the network's own forward."""
    names = {chain.layers[end]: i for i, end in enumerate(chain.ends)}
    features: list[Tensor | None] = [None] * len(names)
    for call in forward_calls.trace(module, batch.inputs, names)[0]:
        features[names[call.name]] = call.output
    return features


def _second_row(batch: Batch) -> Batch:
    """The second row by itself, without its padding."""
    real = slice(None) if batch.valid_BT is None else batch.valid_BT[1]
    inputs = {
        name: value
        if not isinstance(value, Tensor)
        else value[1:2]
        if batch.valid_BT is None
        else value[1:2, real]
        for name, value in batch.inputs.items()
    }
    return Batch(inputs, 1)


def _checked(
    backbone: recorded.RecordedBackbone, batch: Batch, theirs: Sequence[Tensor | None]
) -> tuple[list[Tensor], Any]:
    """The features of the stages, each equal to the network's own; and the plan."""
    features = []
    with evaluating(backbone), torch.no_grad():
        carry = backbone.begin(batch.inputs)
        plan = carry["plan"]
        for index, (end, wanted) in enumerate(zip(backbone.chain.ends, theirs, strict=True)):
            carry, feature = backbone.stage(carry, index)
            name = backbone.chain.layers[end]
            if backbone.feature_shapes[index][-1] not in (None, carry["x"].shape[-1]):
                raise ValueError(
                    f"what {name!r} gives has another width in other batches: it is no vector "
                    "for each token, [B, T, H]"
                )
            if gap := mismatch(carry["x"], wanted):
                raise ValueError(
                    f"its own forward isn't its layers one after another: after {name!r}, {gap}"
                )
            features.append(feature)
    return features, plan


def _check_alone(backbone: Backbone, together: Sequence[Tensor], alone: Sequence[Tensor]) -> None:
    """Refuse stages whose second row isn't what it is by itself."""
    for stage, (all_rows, row) in enumerate(zip(together, alone, strict=True)):
        is_text = backbone.layouts[stage] == "tokens"
        cut = all_rows[1:2, : row.shape[1]] if is_text else all_rows[1:2]
        gap, scale = (cut - row).abs().max().item(), row.abs().max().item()
        if not gap <= (2e-4 if row.element_size() > 2 else 5e-2) * scale:
            raise ValueError(
                f"stage {stage}: a row's feature depends on the rows or the padding beside it "
                f"(by {gap:.3g} of {scale:.3g}), and exits need each row by itself"
            )


class Ending(NamedTuple):
    """The end of a network, behind its layers.

    Args:
        norm: a module's name, None where there is none or it is of the last stage alone.
        names: of the rest (`tails.find_tail`).
    """

    norm: str | None
    names: list[str]


def find_ending(
    module: nn.Module, recording: Recording, target: Tensor, valid_BT: Tensor | None
) -> Ending | None:
    """Find what leads from the last layer to the network's answer; None where it can't be told."""
    x = recording.features[-1]
    end = max(call.ended for call in recording.calls if call.name == recording.chain.layers[-1])
    calls = sorted((c for c in recording.calls if c.began > end), key=lambda call: call.began)
    names = tails.find_tail(calls, x, target, valid_BT)
    if names is None:
        return None
    is_even = len({feature.shape for feature in recording.features}) == 1
    norm, rest = tails.split_norm(names, module) if is_even else (None, names)
    return Ending(norm, rest)


def described_ending(spec: Mapping[str, Any]) -> Ending | None:
    """An ending from its description in a backbone's spec; None where there is none."""
    return Ending(spec.get("norm"), list(spec["tail"])) if "tail" in spec else None


def describe(ending: Ending | None) -> dict[str, Any]:
    """An ending's description, for a spec."""
    return {} if ending is None else {"norm": ending.norm, "tail": ending.names}


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
    }


def classifier(
    module: nn.Module, ending: Ending, classes: int, labels: Sequence[str] | None = None
) -> Classifier | None:
    """The network's own head; None where what it does can't be told."""
    halves = tails.split_last(ending.names, module)
    if halves is None:
        return None
    before, last = halves
    read = tails.Tail(tails.parts(before, module))
    return Classifier(module.get_submodule(last), classes, read, labels)


def shapes_and_layouts(
    module: nn.Module, recording: Recording, batch: Batch, layout: str | Sequence[str] | None
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
        calls = _calls_on_other_size(module, batch)
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
    }


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
        "feature_shapes": [tuple(shape) for shape in described["shapes"]],
        "layouts": described["layouts"],
        "pool": spec["pool"],
        "spec": spec,
    }
