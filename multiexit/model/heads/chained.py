"""Heads that read what earlier heads left: learned exits, cascades and ensembles, mixed layers.

Letters: B batch rows, D width of what a head's last layer reads, K classes.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multiexit.arguments import unknown
from multiexit.model.heads.base import ChainedHead, Memory, VectorHead
from multiexit.policies.base import need_classes

GATE = 32
"""The width of an exit's own gate (ConsistentEE)."""


class CertainHead(ChainedHead):
    """A head and how sure it is that rows may leave: `u = sigmoid(gate(vector))`, [B] in 0..1.

    Reference: Xin et al., "BERxiT", EACL 2021, section 3.3, whose gate is one layer for all exits,
    and whose code predicts 1 − u. Zeng et al., "ConsistentEE", AAAI 2024, whose exits have each a
    network of their own.

    Args:
        base: gives the logits, and the vector that the gate reads too.
        gate: from D to 1; None is always sure, as the last exit may be.

    Example:
        >>> import torch, multiexit as mx
        >>> base = mx.heads.LinearHead((8,), num_classes=3, pool="mean")
        >>> head = mx.heads.CertainHead(base, torch.nn.Linear(8, 1))
        >>> logits_BK, memory = head(torch.rand(2, 8), None, {})
        >>> memory["certainty"].shape
        torch.Size([2])
    """

    reads_earlier: ClassVar[bool] = False

    def __init__(self, base: VectorHead, gate: nn.Module | None):
        super().__init__()
        self.base = base
        self.gate = gate

    def forward(
        self, feature: Tensor, valid_BT: Tensor | None, memory: Memory
    ) -> tuple[Tensor, Memory]:
        vector_BD = self.base.vector(feature, valid_BT)
        logits_BK = self.base.linear(vector_BD)
        if self.gate is None:
            certainty_B = torch.ones_like(logits_BK[:, 0])
        else:
            certainty_B = torch.sigmoid(self.gate(vector_BD)).squeeze(-1)
        return logits_BK, {**memory, "certainty": certainty_B}


class MixedHead(ChainedHead):
    """A head on a learned mix of all exits' vectors so far: `linear(Σ_(j≤m) s_mj · vector_j)`.

    s_m = softmax(a_m), a learned vector per exit, equal at the start.

    Reference: Schwartz et al., "The Right Tool for the Job", ACL 2020, section 3. Its code mixes
    all layers below, has weights of norm 1, and replaces them in each forward pass, so that they
    stay as drawn; here they are learned, as the paper says, over the layers that have exits.

    Args:
        base: gives an exit's vector, and the last layer.
        exit: m, counted from 0.

    Example:
        The second exit reads the mean of two vectors, as long as its mix hasn't learnt:

        >>> import torch, multiexit as mx
        >>> base = mx.heads.LinearHead((8,), num_classes=3, pool="mean")
        >>> head, f = mx.heads.MixedHead(base, exit=1), torch.rand(2, 8)
        >>> logits_BK, _ = head(f, None, {"vectors": torch.zeros(2, 1, 8)})
        >>> torch.allclose(logits_BK, base(f / 2))
        True
    """

    def __init__(self, base: VectorHead, exit: int):
        super().__init__()
        self.base = base
        self.mix = nn.Parameter(torch.zeros(exit + 1))

    def forward(
        self, feature: Tensor, valid_BT: Tensor | None, memory: Memory
    ) -> tuple[Tensor, Memory]:
        own_B1D = self.base.vector(feature, valid_BT).unsqueeze(1)
        earlier = [memory["vectors"]] if "vectors" in memory else []
        vectors_BmD = torch.cat([*earlier, own_B1D], 1)
        # Without what came before (the network run without its early exits) it is the last alone.
        share_m1 = self.mix[-vectors_BmD.shape[1] :].softmax(0).unsqueeze(-1)
        mixed_BD = (share_m1 * vectors_BmD).sum(1)
        return self.base.linear(mixed_BD), {**memory, "vectors": vectors_BmD}


class CascadedHead(ChainedHead):
    """Zero Time Waste: each early head reads the one before, then all of them vote.

        z_1 = linear(vector),    z_m = linear(vector) + V·norm(stopgrad(z_(m−1)))
        e_m = (1/m)·Σ_(j≤m) exp(w_mj)·log p_j + b_m,    p_j = softmax(z_j)

    z_m are the logits until the ensemble is switched on, e_m after that. The last exit stays the
    network's own: no cascade, no vote.

    Reference: Wołczyk et al., "Zero Time Waste", NeurIPS 2021, section 3. As in its later code,
    the norm is there everywhere; `linear` on a vector with logits behind it, as written there, is
    the same as the sum here.

    Args:
        base: gives the vector, and the layer on it.
        exit: m, counted from 0.
        last: whether it is the last exit.

    Example:
        >>> import torch, multiexit as mx
        >>> base = mx.heads.LinearHead((8,), num_classes=3, pool="mean")
        >>> head = mx.heads.CascadedHead(base, exit=0, last=False)
        >>> logits_BK, memory = head(torch.rand(2, 8), None, {})
        >>> sorted(memory), memory["log_p"].shape  # of the exits so far
        (['log_p', 'logits'], torch.Size([2, 1, 3]))
    """

    def __init__(self, base: VectorHead, exit: int, last: bool):
        super().__init__()
        self.base = base
        K = _last_layer(base).out_features
        joined = exit > 0 and not last
        self.norm = nn.LayerNorm(K) if joined else None
        self.joint = nn.Linear(K, K, bias=False) if joined else None
        self.vote = None if last else Vote(exit + 1, K)

    def forward(
        self, feature: Tensor, valid_BT: Tensor | None, memory: Memory
    ) -> tuple[Tensor, Memory]:
        z_BK = self.base(feature, valid_BT)
        if self.vote is None:
            return z_BK, memory
        if self.norm is not None and self.joint is not None:
            z_BK = z_BK + self.joint(self.norm(memory["logits"].detach()))
        log_p_B1K = F.log_softmax(z_BK, -1).unsqueeze(1)
        earlier = [memory["log_p"]] if "log_p" in memory else []
        log_p_BmK = torch.cat([*earlier, log_p_B1K], 1)
        logits_BK = self.vote(log_p_BmK, z_BK)
        return logits_BK, {**memory, "logits": z_BK, "log_p": log_p_BmK}


class Vote(nn.Module):
    """e = mean_j exp(w_j)·log p_j + b, once it is switched on; the latest logits before that.

    Args:
        members: m, how many exits vote.
        num_classes: K.

    Example:
        >>> import torch, multiexit as mx
        >>> vote, z_BK = mx.heads.Vote(members=2, num_classes=3), torch.rand(4, 3)
        >>> torch.equal(vote(torch.rand(4, 2, 3).log(), z_BK), z_BK)  # it is off at first
        True
    """

    def __init__(self, members: int, num_classes: int):
        super().__init__()
        self.w = nn.Parameter(0.01 * torch.randn(members))
        self.b = nn.Parameter(torch.zeros(num_classes))
        self.on = nn.Buffer(torch.zeros((), dtype=torch.bool))

    def forward(self, log_p_BmK: Tensor, z_BK: Tensor) -> Tensor:
        voted_BK = (self.w.exp().unsqueeze(-1) * log_p_BmK).mean(1) + self.b
        return torch.where(self.on, voted_BK, z_BK)


def _last_layer(head: VectorHead) -> nn.Linear:
    assert isinstance(head.linear, nn.Linear)
    return head.linear


def _certain_heads(heads: Sequence[VectorHead]) -> list[ChainedHead]:
    widths = {_last_layer(head).in_features for head in heads}
    if len(widths) > 1:
        raise ValueError(
            f"learning to exit shares one layer, so it needs vectors of one width; these heads "
            f"read {sorted(widths)}: choose exits after stages of one width"
        )
    gate = nn.Linear(widths.pop(), 1)
    return [CertainHead(head, gate) for head in heads]


def _gated_heads(heads: Sequence[VectorHead]) -> list[ChainedHead]:
    gates = [
        nn.Sequential(nn.Linear(_last_layer(head).in_features, GATE), nn.GELU(), nn.Linear(GATE, 1))
        for head in heads[:-1]
    ]
    return [CertainHead(head, gate) for head, gate in zip(heads, [*gates, None], strict=True)]


def _mixed_heads(heads: Sequence[VectorHead]) -> list[ChainedHead]:
    widths = {_last_layer(head).in_features for head in heads}
    if len(widths) > 1:
        raise ValueError(
            f"mixing layers needs vectors of one width; these heads read {sorted(widths)}: choose "
            "exits after stages of one width, or a head without '+mix'"
        )
    return [MixedHead(head, exit) for exit, head in enumerate(heads)]


def _cascaded_heads(heads: Sequence[VectorHead]) -> list[ChainedHead]:
    need_classes(_last_layer(heads[0]).out_features, "'+cascade'", "heads without it")
    return [CascadedHead(head, exit, head is heads[-1]) for exit, head in enumerate(heads)]


CHAINED: dict[str, Callable[[Sequence[VectorHead]], list[ChainedHead]]] = {
    "lte": _certain_heads,
    "gates": _gated_heads,
    "mix": _mixed_heads,
    "cascade": _cascaded_heads,
}


def chain(name: str, heads: Sequence[VectorHead], problem: str | None = None) -> list[ChainedHead]:
    """Chain heads, one per exit, by a name in `CHAINED`.

    Args:
        name: a key of `CHAINED`.
        heads: one per exit.
        problem: the model's; None is classification, or with one output regression.

    Raises:
        ValueError: an unknown name, or heads that can't be chained so.
    """
    if name not in CHAINED:
        raise unknown("way to chain heads called", name, sorted(CHAINED))
    for head in heads:
        if not isinstance(head.linear, nn.Linear):
            raise ValueError(
                f"'+{name}' chains heads that end in an nn.Linear, and the network's own head, the "
                f"last exit, ends in a {type(head.linear).__name__}: leave '+{name}' out, or let a "
                "new head take its place: backbone.set_classifier(None)"
            )
    if name == "cascade" and problem not in (None, "classification"):
        raise ValueError(
            f"'+cascade' votes on one distribution over classes a row, and the problem is "
            f"{problem!r}: use heads without it"
        )
    return CHAINED[name](heads)
