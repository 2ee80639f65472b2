"""The stages of a `RecordedBackbone` compared with the network's own layers, in its own forward.

Letters: B batch rows, T tokens.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from multiexit.backbones.layers import forward_calls
from multiexit.backbones.layers.recorded import RecordedBackbone
from multiexit.backbones.layers.recording import Batch, Recording
from multiexit.backbones.verify import mismatch
from multiexit.runtime import evaluating


def check(
    backbone: RecordedBackbone,
    module: nn.Module,
    first_run: Recording,
    batches: Sequence[Batch],
    one_length: bool = False,
) -> None:
    """Refuse stages that aren't what the network's own layers give in its own forward.

    Args:
        backbone: the network in stages.
        module: the network.
        first_run: of the first batch.
        batches: as for `record_layers`. Of the second only what comes before the layers is run;
            the second row of the first runs by itself, too.
        one_length: whether the backbone fills up rows to the length that the batches have, so that
            the network gets this row with its padding.

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
        _checked(backbone, batch, _features(backbone, module, batch))
    by_itself = _second_row(first, padded=False)
    whole = _second_row(first, padded=True)
    theirs = _features(backbone, module, whole if one_length else by_itself)
    alone, _ = _checked(backbone, by_itself, theirs)
    gap = _first_gap(backbone, together, alone)
    if not gap:
        return
    padded, _ = _checked(backbone, whole, _features(backbone, module, whole))
    if first.valid_BT is not None and not _first_gap(backbone, together, padded):
        raise ValueError(
            f"{gap} on the padding beside it, and exits need each row by itself: in Python, "
            "with multiexit.wrap(…, input_shape=(T,)), rows are filled up to T tokens, as a "
            "tokenizer does with padding='max_length', and answer as they do then"
        )
    raise ValueError(f"{gap} on the rows beside it, and exits need each row by itself")


def _features(backbone: RecordedBackbone, module: nn.Module, batch: Batch) -> list[Tensor | None]:
    """What each stage's last layer gives in the network's own forward, as a feature."""
    names = {backbone.chain.layers[end]: i for i, end in enumerate(backbone.chain.ends)}
    features: list[Tensor | None] = [None] * len(names)
    for call in forward_calls.trace(module, batch.inputs, names)[0]:
        features[names[call.name]] = None if call.output is None else backbone.turned(call.output)
    return features


def _second_row(batch: Batch, padded: bool) -> Batch:
    """The second row by itself, with its padding or without."""
    real = slice(None) if padded or batch.valid_BT is None else batch.valid_BT[1]
    inputs = {
        name: value[1:2][:, real] if isinstance(value, Tensor) else value
        for name, value in batch.inputs.items()
    }
    return Batch(inputs, 1)


def _checked(
    backbone: RecordedBackbone, batch: Batch, theirs: Sequence[Tensor | None]
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


def _first_gap(
    backbone: RecordedBackbone, together: Sequence[Tensor], alone: Sequence[Tensor]
) -> str:
    """The first stage whose second row isn't what it is by itself, in words; empty if all are."""
    for stage, (all_rows, row) in enumerate(zip(together, alone, strict=True)):
        is_text = backbone.layouts[stage] == "tokens"
        cut = all_rows[1:2, : row.shape[1]] if is_text else all_rows[1:2]
        gap, scale = (cut - row).abs().max().item(), row.abs().max().item()
        if not gap <= (2e-4 if row.element_size() > 2 else 5e-2) * scale:
            return f"stage {stage}: a row's feature depends (by {gap:.3g} of {scale:.3g})"
    return ""
