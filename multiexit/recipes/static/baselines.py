"""Static baselines by name: each trains one network without early exits, from an encoder.

The names are those of the command line. Each function takes its baseline's own options and gives a
`Baseline`, as a recipe's function gives a `Recipe`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from multiexit.arguments import check_share, unknown
from multiexit.backbones import Backbone
from multiexit.backbones.transformers.attention_heads import attentions, head_width
from multiexit.model.model import MultiExitModel
from multiexit.recipes import Recipe
from multiexit.recipes.options import check_options
from multiexit.recipes.static.attention_heads import keep_heads
from multiexit.recipes.static.importance import head_importance, heads_to_keep
from multiexit.recipes.static.layerdrop import LayerDrop
from multiexit.recipes.static.layers import check_depth, first_layers, keep_layers, spread_layers
from multiexit.recipes.static.pkd import pkd as pkd_recipe
from multiexit.recipes.static.single import fine_tune, single_exit
from multiexit.recipes.static.theseus import Theseus, successor
from multiexit.recipes.static.theseus import theseus as theseus_recipe


@dataclass(frozen=True)
class Parts:
    """What a baseline is made with.

    Args:
        encoder: makes the pre-trained encoder, anew at each call.
        fit: trains a model by a recipe, in place, and gives its history.
        rows: the training set, for the importance of attention heads.
        num_classes, pool, labels: of the models.
    """

    encoder: Callable[[], Any]
    fit: Callable[[MultiExitModel, Recipe], Any]
    rows: Any
    num_classes: int
    pool: str | None = None
    labels: tuple[str, ...] | None = None

    def on(self, backbone: Backbone, exits: Any = None) -> MultiExitModel:
        """A model with these exits; None is one, at the last stage."""
        exits = exits or [backbone.num_stages - 1]
        return MultiExitModel(backbone, self.num_classes, exits, pool=self.pool, labels=self.labels)


@dataclass(frozen=True)
class Baseline:
    """A static baseline.

    Args:
        name: on the command line.
        rows: of LeeBERT's Tables 1 and 5.
        paper, section, year, summary: as a recipe has them.
        train: makes and trains it: the model of one exit, and the history of its last training.
            What doesn't go together is refused before any training.
    """

    name: str
    rows: str
    paper: str
    section: str
    year: int
    summary: str
    train: Callable[[Parts], tuple[MultiExitModel, Any]]


def full() -> Baseline:
    """The whole encoder, fine-tuned."""

    def train(parts: Parts) -> tuple[MultiExitModel, Any]:
        model = parts.on(parts.encoder())
        return model, parts.fit(model, fine_tune())

    return Baseline(
        name="full",
        rows="ALBERT-base, BERT-base",
        paper="Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers",
        section="3.2",
        year=2019,
        summary="the whole encoder, fine-tuned",
        train=train,
    )


def first(layers: int = 6) -> Baseline:
    """The first n layers, fine-tuned.

    Args:
        layers: n.
    """

    def train(parts: Parts) -> tuple[MultiExitModel, Any]:
        model = parts.on(first_layers(parts.encoder(), layers))
        return model, parts.fit(model, fine_tune())

    return Baseline(
        name="first",
        rows="ALBERT-6L, ALBERT-9L, BERT-6L, BERT-9L",
        paper="Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers",
        section="3.2",
        year=2019,
        summary="the first layers, fine-tuned",
        train=train,
    )


def layerdrop(layers: int = 6, rate: float = 0.2) -> Baseline:
    """All layers trained with LayerDrop, then every other one kept, without training again.

    Args:
        layers: how many are kept, evenly spread.
        rate: with which a layer is skipped in training, in [0, 1).
    """
    check_share("rate", rate, "[0, 1)")

    def train(parts: Parts) -> tuple[MultiExitModel, Any]:
        dropping = LayerDrop(parts.encoder(), rate)
        kept = spread_layers(dropping.num_stages, layers)
        whole = parts.on(dropping)
        history = parts.fit(whole, fine_tune())
        return single_exit(whole, keep_layers(dropping.inner, kept)), history

    return Baseline(
        name="layerdrop",
        rows="LayerDrop",
        paper="Fan et al., Reducing Transformer Depth on Demand with Structured Dropout",
        section="3.2",
        year=2020,
        summary="layers are skipped at random in training; then some go",
        train=train,
    )


def headprune(share: float = 0.5) -> Baseline:
    """The encoder fine-tuned, its least important attention heads cut out, and trained again.

    Args:
        share: of the heads that go, in [0, 1).
    """
    check_share("share", share, "[0, 1)")

    def train(parts: Parts) -> tuple[MultiExitModel, Any]:
        model = parts.on(parts.encoder())
        trunk: Any = model.backbone
        layers = attentions(trunk)
        heads_to_keep([torch.zeros(layer.heads(head_width(trunk))) for layer in layers], share)
        parts.fit(model, fine_tune())
        kept = heads_to_keep(head_importance(model, parts.rows), share)
        pruned = single_exit(model, keep_heads(trunk, kept))
        return pruned, parts.fit(pruned, fine_tune())

    return Baseline(
        name="headprune",
        rows="HeadPrune",
        paper="Michel, Levy & Neubig, Are Sixteen Heads Really Better than One?",
        section="4",
        year=2019,
        summary="the least important attention heads are cut out",
        train=train,
    )


def distilbert() -> Baseline:
    """DistilBERT, or any other short encoder that was distilled before, fine-tuned."""
    return Baseline(
        name="distilbert",
        rows="DistillBERT",
        paper="Sanh et al., DistilBERT, a distilled version of BERT",
        section="3",
        year=2019,
        summary="a published short encoder, fine-tuned as it is",
        train=full().train,
    )


def pkd(
    layers: int = 6,
    alpha: float = 0.7,
    temperature: float = 10.0,
    beta: float = 500.0,
    pattern: str = "skip",
) -> Baseline:
    """The first n layers learn from the fine-tuned encoder's answers and hidden states.

    Args:
        layers: n ≥ 2.
        alpha, temperature, beta, pattern: as for `multiexit.recipes.static.pkd`.
    """

    def train(parts: Parts) -> tuple[MultiExitModel, Any]:
        teacher = parts.on(parts.encoder())
        recipe = pkd_recipe(teacher, layers, alpha, temperature, beta, pattern)
        student = parts.on(first_layers(parts.encoder(), layers), "all")
        parts.fit(teacher, fine_tune())
        history = parts.fit(student, recipe)
        return single_exit(student), history

    return Baseline(
        name="pkd",
        rows="BERT-PKD",
        paper="Sun et al., Patient Knowledge Distillation for BERT Model Compression",
        section="3",
        year=2019,
        summary="the first layers learn from the whole network's answers and layers",
        train=train,
    )


def theseus(layers: int = 6, base: float = 0.3, reach: float = 1.0) -> Baseline:
    """New layers replace the fine-tuned encoder's blocks, by chance and ever more often.

    Args:
        layers: n, which divides the encoder's depth.
        base, reach: as for `multiexit.recipes.static.theseus`.
    """
    recipe = theseus_recipe(base, reach)

    def train(parts: Parts) -> tuple[MultiExitModel, Any]:
        model = parts.on(parts.encoder())
        depth = model.backbone.num_stages
        check_depth(layers, depth)
        if depth % layers:
            raise ValueError(f"{layers} layers can't replace {depth} in blocks of one size")
        parts.fit(model, fine_tune())
        trunk: Any = model.backbone
        ship = single_exit(model, Theseus(trunk, layers))
        history = parts.fit(ship, recipe)
        return successor(ship), history

    return Baseline(
        name="theseus",
        rows="BERT-of-Theseus",
        paper=recipe.paper,
        section=recipe.section,
        year=recipe.year,
        summary="short layers replace a network's blocks with rising probability",
        train=train,
    )


BASELINES: dict[str, Callable[..., Baseline]] = {
    "full": full,
    "first": first,
    "layerdrop": layerdrop,
    "headprune": headprune,
    "distilbert": distilbert,
    "pkd": pkd,
    "theseus": theseus,
}


def baseline(name: str, **options: Any) -> Baseline:
    """The baseline of a name.

    Args:
        name: a key of `BASELINES`, as on the command line.
        options: the arguments of that baseline's function.

    Raises:
        ValueError: an unknown name, an option that the baseline doesn't have, or a value of another
            kind than the option's, or that its function refuses.

    Example:
        >>> import multiexit as mx
        >>> mx.static.baseline("first", layers=9).rows
        'ALBERT-6L, ALBERT-9L, BERT-6L, BERT-9L'
    """
    if name not in BASELINES:
        raise unknown("baseline", name, BASELINES)
    check_options(name, BASELINES[name], options)
    return BASELINES[name](**options)
