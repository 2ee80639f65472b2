"""Pruned attention heads, against heads that are zeroed."""

import pytest
import torch
from encoders import A, H, assert_saves, batch, bert, on
from helpers import Text, config, fit

from multiexit.backbones.transformers.attention_heads import attentions
from multiexit.recipes import static

KEPT = [[0, 2], [1], [0, 1, 2, 3], [3], [0, 3], [1, 2, 3]]


def kept_for(backbone):
    return KEPT[: len(attentions(backbone))]


def test_kept_heads_give_what_zeroed_heads_give(backbone):
    inputs, _ = batch()
    kept = kept_for(backbone)
    pruned = static.keep_heads(backbone, kept)
    d = H // A

    def without(heads):
        def hook(module, args):
            mask = torch.zeros(A)
            mask[heads] = 1
            return (args[0] * mask.repeat_interleave(d),)

        return hook

    for each, heads in zip(attentions(backbone), kept, strict=True):
        each.outward.register_forward_pre_hook(without(heads))
    with torch.no_grad():
        for one, other in zip(pruned.features(**inputs), backbone.features(**inputs), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_heads_take_their_parameters_and_macs_with_them(backbone):
    kept, d, T = kept_for(backbone), H // A, 30
    pruned = static.keep_heads(backbone, kept)
    gone = [A - len(heads) for heads in kept]
    before, after = on(backbone), on(pruned)
    inputs = backbone.example_inputs(1, T)
    assert len(attentions(backbone)) == len(kept)
    each = [4 * H * d + 3 * d] * len(gone)
    fewer = before.cost(inputs).params_M[0] - after.cost(inputs).params_M[0]
    assert fewer == sum(g * p for g, p in zip(gone, each, strict=True))
    uses = [backbone.order.count(index) for index in range(len(kept))]
    per_head = 4 * T * H * d + 2 * T * T * d
    fewer = before.cost(inputs).macs_M[0] - after.cost(inputs).macs_M[0]
    assert fewer == per_head * sum(g * u for g, u in zip(gone, uses, strict=True))


def test_pruned_heads_are_saved_with_the_model(backbone, tmp_path):
    pruned = static.keep_heads(backbone, kept_for(backbone))
    assert_saves(on(pruned), tmp_path / "pruned")
    again = static.keep_heads(
        pruned, [heads[-1:] and [len(heads) - 1] for heads in kept_for(backbone)]
    )
    assert again.spec["heads"] == [[heads[-1]] for heads in kept_for(backbone)]  # of the whole one
    short = static.keep_layers(again, [0, 4, 5])
    assert_saves(on(short), tmp_path / "short")
    assert_saves(on(static.keep_layers(pruned, [1, 5])), tmp_path / "shorter")
    fit(on(pruned), static.fine_tune(), config(max_steps=1), Text())


@pytest.mark.parametrize(
    "kept", [KEPT[:5], [[], *KEPT[1:]], [[1, 0], *KEPT[1:]], [[4], *KEPT[1:]], [[0, 0], *KEPT[1:]]]
)
def test_heads_that_are_not_there_are_refused(kept):
    with pytest.raises(ValueError, match="heads"):
        static.keep_heads(bert(), kept)
