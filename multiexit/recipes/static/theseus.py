"""BERT-of-Theseus: blocks of a fine-tuned network are replaced by single layers, by chance.

Letters: L layers of the predecessor, n of the successor, B batch rows, T tokens, H width.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from multiexit.arguments import check_share
from multiexit.backbones.base import Backbone, Carry
from multiexit.backbones.transformers.transformer import TransformerBackbone
from multiexit.losses import coefficients
from multiexit.model.model import MultiExitModel
from multiexit.policies import FixedExit
from multiexit.recipes import Phase, Recipe
from multiexit.recipes.static.layers import check_depth, check_encoder, first_layers
from multiexit.recipes.static.random_layers import adopt, facts, idle
from multiexit.recipes.static.single import single_exit


class Theseus(Backbone):
    """n stages; in training each is a block of the predecessor's layers or one of the successor's.

        x ← f'_i(x) with probability `rate`, else f_(i+1)k−1(…f_ik(x)), k = L / n, i = 0..n − 1,

    drawn for each stage and batch. In evaluation mode the successor runs alone. The successor f'
    starts as the predecessor's first n layers. Only its weights are this module's own, under the
    names of a plain encoder, so a model of it is saved and loaded as the short one.

    Args:
        predecessor: a fine-tuned encoder; its layers are copied, frozen, in evaluation mode.
        layers: n, which divides L.

    Raises:
        ValueError: another kind of backbone, or a depth that n doesn't divide.

    Attributes:
        rate: the probability of replacement, set by `theseus` before each step; 1 at first.

    Relations:
        In training at rate 0 it is the predecessor, with its layers in evaluation mode; at rate 1
        and in evaluation it is the successor.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> import multiexit as mx
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        >>> bert = mx.wrap(BertModel(BertConfig(num_hidden_layers=4, vocab_size=50, **sizes)))
        >>> ship = mx.static.Theseus(bert, layers=2)
        >>> ship.num_stages, ship.rate
        (2, 1.0)
    """

    same_path = False

    def __init__(self, predecessor: TransformerBackbone, layers: int):
        check_encoder(predecessor)
        depth = predecessor.num_stages
        check_depth(layers, depth)
        if depth % layers:
            raise ValueError(f"{layers} layers can't replace {depth} in blocks of one size")
        short = first_layers(predecessor, layers)
        super().__init__(**facts(short))
        adopt(self, short)
        self.rate = 1.0
        self._successor = (short,)  # in a tuple, so that nn.Module doesn't register it once more
        frozen = copy.deepcopy(predecessor.layers).requires_grad_(False).eval()
        self._predecessor = (frozen,)  # in a tuple, so that it is neither trained nor saved
        block = depth // layers
        self._blocks = [predecessor.order[i : i + block] for i in range(0, depth, block)]

    @property
    def successor(self) -> TransformerBackbone:
        """The short encoder that is trained."""
        return self._successor[0]

    def start(self, *args: Any, **inputs: Any) -> Carry:
        return self.successor.start(*args, **inputs)

    def stage(self, carry: Carry, index: int) -> tuple[Carry, Tensor]:
        if not self.training or float(torch.rand(())) < self.rate:
            return self.successor.stage(carry, index)
        x_BTH, (old,) = carry["x_BTH"], self._predecessor
        old.to(x_BTH.device)
        x_BTH = idle(x_BTH, self.stage_module(index))
        for layer in self._blocks[index]:
            x_BTH = old[layer](x_BTH, carry["mask"])
        return {**carry, "x_BTH": x_BTH}, x_BTH

    def stage_module(self, index: int) -> nn.Module:
        return self.successor.stage_module(index)

    def example_inputs(self, batch: int = 1) -> dict[str, Tensor]:
        return self.successor.example_inputs(batch)


def theseus(base: float = 0.3, reach: float = 1.0) -> Recipe:
    """Replace with a rising probability, then fine-tune the successor alone (sections 3.1–3.3).

        p(t) = min(1, b + (1 − b)·t / r),  t the share of the first phase that is done

    which is the paper's linear curriculum min(1, k·t + b), with k such that p = 1 after the share
    r of the phase. The loss is the labels' cross-entropy at the one exit. Train
    `single_exit(predecessor, Theseus(predecessor.backbone, n))` by it, and take `successor` of it.

    The successor's layers alone are trained, in both phases; embeddings, pooler and classifier stay
    the predecessor's, as in the code. There one run goes on when p is 1, here a second phase starts
    from the best weights; there frozen layers have dropout, here they are in evaluation mode.

    Args:
        base: b in [0, 1]; their example has 0.3.
        reach: r in (0, 1].

    Inputs:
        A model of one exit on `Theseus(…)` of a fine-tuned predecessor. Classes or regression.

    Relations:
        The loss of `fine_tune`; of its parameters the successor's layers alone.

    Raises:
        ValueError: values outside these ranges; in training, a model on another backbone.

    Example:
        >>> import multiexit as mx
        >>> recipe = mx.static.theseus(base=0.3)
        >>> len(recipe.phases), recipe.policy
        (2, FixedExit(exit=0))

    Reference: Xu et al., "BERT-of-Theseus: Compressing BERT by Progressive Module Replacing",
    EMNLP 2020, section 3.
    """
    check_share("base", base, "[0, 1]")
    check_share("reach", reach, "(0, 1]")

    def replacing(model: MultiExitModel, progress: float) -> None:
        _theseus(model).rate = min(1.0, base + (1 - base) * progress / reach)

    return Recipe(
        name="theseus",
        paper="Xu et al., BERT-of-Theseus: Compressing BERT by Progressive Module Replacing",
        section="3",
        year=2020,
        summary="short layers replace a frozen network's blocks with rising probability",
        phases=tuple(
            Phase(coefficients=coefficients.last_only, train=successor_layers, before_step=step)
            for step in (replacing, _replaced)
        ),
        policy=FixedExit(0),
    )


def successor_layers(model: MultiExitModel) -> Iterable[nn.Parameter]:
    """The parameters that BERT-of-Theseus trains: the successor's layers, no embeddings, no head.

    Raises:
        ValueError: a model on another backbone.
    """
    return _theseus(model).successor.layers.parameters()


def successor(model: MultiExitModel) -> MultiExitModel:
    """The plain short model of one trained by `theseus`; the encoder is shared, the head copied.

    Args:
        model: on `Theseus(…)`, with one exit.

    Returns:
        A model of one exit on the short encoder, which is saved as any other.

    Raises:
        ValueError: a model on another backbone.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> import multiexit as mx
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        >>> bert = mx.wrap(BertModel(BertConfig(num_hidden_layers=4, vocab_size=50, **sizes)))
        >>> ship = mx.MultiExitModel(mx.static.Theseus(bert, layers=2), num_classes=2, exits=[1])
        >>> type(mx.static.successor(ship).backbone).__name__
        'TransformerBackbone'
    """
    return single_exit(model, _theseus(model).successor)


def _replaced(model: MultiExitModel, progress: float) -> None:
    _theseus(model).rate = 1.0


def _theseus(model: MultiExitModel) -> Theseus:
    if not isinstance(model.backbone, Theseus):
        raise ValueError(f"a model on Theseus(…) is needed, not on {type(model.backbone).__name__}")
    return model.backbone
