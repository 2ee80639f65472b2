"""The importance of attention heads, and which a network can do without.

Letters: B batch rows, T tokens, A heads, d width of a head.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from multiexit.arguments import check_share
from multiexit.backbones.transformers.attention_heads import Attention, attentions, head_width
from multiexit.data.batches import loader, move, unpack
from multiexit.losses import matrix
from multiexit.losses.criterion import Criterion
from multiexit.model.model import MultiExitModel
from multiexit.recipes.static.layers import check_encoder
from multiexit.runtime import evaluating


def head_importance(
    model: MultiExitModel,
    data: Dataset[Any] | Iterable[Any],
    batch_size: int = 32,
    normalise: bool = True,
) -> list[Tensor]:
    """Measure how much the loss of the last exit depends on each head.

        I_h = E_x |∂L(x) / ∂ξ_h| = E_x |A_h(x)ᵀ ∂L(x) / ∂A_h(x)|

    with ξ_h = 1 a factor on the head's output A_h(x), all tokens of x together; a layer's values
    are then divided by their ℓ2 norm. Of ALBERT's shared layers the values of all uses are added.

    Args:
        model: on a BERT-like encoder; dropout is off for the while.
        data: a data set, or batches, with labels; a part of the training set will do.
        batch_size: rows per batch, where `data` doesn't say; it doesn't change the result.
        normalise: divide by the norms, as the paper advises across layers.

    Returns:
        Per layer (per shared layer for ALBERT), as `heads_to_keep` wants them, float32 [A].

    Raises:
        ValueError: another kind of backbone, or no rows.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> import torch, multiexit as mx
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        >>> bert = BertModel(BertConfig(num_hidden_layers=3, vocab_size=50, **sizes))
        >>> model = mx.MultiExitModel(mx.wrap(bert), num_classes=2, exits=[2])
        >>> batch = {"input_ids": torch.arange(8).view(2, 4), "labels": torch.tensor([0, 1])}
        >>> [len(each_A) for each_A in mx.static.head_importance(model, [batch])]
        [2, 2, 2]

    Reference: Michel, Levy & Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019,
    section 4.1. Their code takes the absolute value per token, not per input; we follow the
    formula.
    """
    check_encoder(model.backbone)
    backbone: Any = model.backbone
    layers = attentions(backbone)
    device = next(model.parameters()).device
    sums = [torch.zeros(layer.heads(head_width(backbone)), device=device) for layer in layers]
    rows, criterion = 0, Criterion(model.problem)
    _ = backbone.overwritten  # is found before masks count runs
    with evaluating(model):
        for batch in loader(data, batch_size)[0]:
            args, inputs, labels_B = unpack(batch)
            labels_B = labels_B.to(device)
            with torch.enable_grad(), masks(layers, head_width(backbone)) as used:
                logits_MBC = model.run(move(args, device), move(inputs, device)).logits_MBC
                loss = matrix.row_losses(logits_MBC[-1:], labels_B, criterion).sum()
            pairs = [(index, mask) for index, uses in enumerate(used) for mask in uses]
            slopes = torch.autograd.grad(loss, [mask for _, mask in pairs])
            for (index, _), slope_B1A1 in zip(pairs, slopes, strict=True):
                sums[index] += slope_B1A1.float().abs().sum(0).flatten()
            rows += len(labels_B)
    if rows == 0:
        raise ValueError("no rows to measure the heads' importance on: the data set is empty")
    means = [total_A / rows for total_A in sums]
    return [_A / (_A.norm() + 1e-20) for _A in means] if normalise else means


def heads_to_keep(importance: Sequence[Tensor], share: float) -> list[list[int]]:
    """The heads that stay when the least important ones of all layers go.

    ⌊share · heads⌋ go, the lowest first; each layer's best one always stays.

    Args:
        importance: per layer [A], from `head_importance`.
        share: of all heads, in [0, 1).

    Raises:
        ValueError: a share outside [0, 1), or so large that a layer would lose its last head.

    Example:
        >>> heads_to_keep([torch.tensor([0.9, 0.1]), torch.tensor([0.3, 0.2])], 0.5)
        [[0], [0]]

    Reference: as `head_importance`, section 4, and its code with one head per layer at least.
    """
    check_share("the share of heads that go", share, "[0, 1)")
    total = sum(len(each_A) for each_A in importance)
    count = int(share * total + 1e-9)
    most = total - len(importance)
    if count > most:
        raise ValueError(
            f"{count} of {total} heads can't go: each of {len(importance)} layers keeps one, so "
            f"the share can be {most / total:.3f} at most, got {share}"
        )
    values = [each_A.tolist() for each_A in importance]
    ranked = sorted(
        (value, layer, head)
        for layer, layer_values in enumerate(values)
        for head, value in enumerate(layer_values)
        if head != layer_values.index(max(layer_values))
    )
    dropped = {(layer, head) for _, layer, head in ranked[:count]}
    return [
        [head for head in range(len(layer_values)) if (layer, head) not in dropped]
        for layer, layer_values in enumerate(values)
    ]


@contextmanager
def masks(layers: Sequence[Attention], d: int) -> Iterator[list[list[Tensor]]]:
    """Inside, each use of an attention multiplies its heads' outputs by ones, [B, 1, A, 1]."""
    uses_of_layers: list[list[Tensor]] = [[] for _ in layers]

    def hook(uses: list[Tensor]) -> Any:
        def masked(module: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x_BTAd = args[0].unflatten(-1, (-1, d))
            B, _, A, _ = x_BTAd.shape
            uses.append(torch.ones(B, 1, A, 1, device=x_BTAd.device, requires_grad=True))
            return ((x_BTAd * uses[-1].to(x_BTAd.dtype)).flatten(-2), *args[1:])

        return masked

    pairs = zip(layers, uses_of_layers, strict=True)
    handles = [layer.outward.register_forward_pre_hook(hook(uses)) for layer, uses in pairs]
    try:
        yield uses_of_layers
    finally:
        for handle in handles:
            handle.remove()
