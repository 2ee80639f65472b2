"""How important a head is, against explicit masks, and which ones go."""

import pytest
import torch
from encoders import LAYERS, MAKE, A, H, batch, bert, on
from helpers import Text
from torch.nn import functional as F

from multiexit.backbones.transformers.attention_heads import attentions
from multiexit.recipes import static
from multiexit.recipes.static.importance import masks


@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_importance_is_the_gradient_of_an_explicit_mask(kind):
    """Row by row, by A·∂L/∂A and by a difference of losses at ξ = 1 ± ε, one use at a time."""
    backbone = MAKE[kind]().double()
    model = on(backbone).double().eval()
    inputs, labels = batch(4)
    data = [{**inputs, "labels": labels}]
    there, d = attentions(backbone), H // A
    found = static.head_importance(model, data, normalise=False)

    def loss(row, use, head, xi):
        seen = []

        def hook(module, args):
            mask = torch.ones(H, dtype=torch.double)
            if len(seen) == use:
                mask[head * d : (head + 1) * d] = xi
            seen.append(1)
            return (args[0] * mask,)

        handles = [each.outward.register_forward_pre_hook(hook) for each in there]
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        with torch.no_grad():
            value = F.cross_entropy(model(**one)[0], labels[row : row + 1])
        for handle in handles:
            handle.remove()
        return float(value)

    eps = 1e-5
    for use, head in ((0, 0), (LAYERS - 1, 3)) if kind == "bert" else ((None, 1),):
        uses = range(LAYERS) if use is None else [use]
        slopes = [
            abs(loss(row, u, head, 1 + eps) - loss(row, u, head, 1 - eps)) / (2 * eps)
            for row in range(4)
            for u in uses
        ]
        wanted = sum(slopes) / 4
        layer = 0 if use is None else use
        assert float(found[layer][head]) == pytest.approx(wanted, rel=1e-4, abs=1e-9)


def test_importance_is_the_dot_product_of_the_paper_and_normalised_by_layer():
    model = on(bert()).eval()
    inputs, labels = batch(4)
    there = attentions(model.backbone)
    total = torch.zeros(LAYERS, A)
    for row in range(4):
        outputs = []
        hooks = [
            each.outward.register_forward_pre_hook(
                lambda m, args, kept=outputs: kept.append(args[0]) or args[0].retain_grad()
            )
            for each in there
        ]
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        F.cross_entropy(model(**one)[0], labels[row : row + 1]).backward()
        for index, value in enumerate(outputs):
            dots = (value * value.grad).unflatten(-1, (A, H // A)).sum((0, 1, 3))
            total[index] += dots.abs().detach()
        for hook in hooks:
            hook.remove()
    model.zero_grad()
    rows = torch.utils.data.Subset(Text(), range(4))
    raw = torch.stack(static.head_importance(model, rows, normalise=False))
    unit = torch.stack(static.head_importance(model.train(), rows, batch_size=3))
    torch.testing.assert_close(raw, total / 4, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(unit, raw / raw.square().sum(1, keepdim=True).sqrt())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    with masks(there, H // A) as used:
        pass
    assert used == [[]] * LAYERS
    with pytest.raises(ValueError, match="empty"):
        static.head_importance(model, [])


def test_the_least_important_heads_go_by_hand():
    importance = [
        torch.tensor(row) for row in ([0.9, 0.1, 0.4], [0.3, 0.2, 0.1], [0.05, 0.06, 0.01])
    ]
    # Best of each layer stays: 0.9, 0.3, 0.06. Of the rest 0.01, 0.05, 0.1, 0.1, 0.2, 0.4 in turn.
    assert static.heads_to_keep(importance, 0.0) == [[0, 1, 2]] * 3
    assert static.heads_to_keep(importance, 0.3) == [[0, 1, 2], [0, 1, 2], [1]]
    assert static.heads_to_keep(importance, 5 / 9) == [[0, 2], [0], [1]]
    assert static.heads_to_keep(importance, 6 / 9) == [[0], [0], [1]]
    with pytest.raises(ValueError, match=r"0\.667 at most"):
        static.heads_to_keep(importance, 0.8)
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            static.heads_to_keep(importance, share)
