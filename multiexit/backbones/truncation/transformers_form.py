"""The first stages of a transformers network, as a network of the class that classifies.

Letters: B batch rows, K classes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    PretrainedConfig,
)

from multiexit.backbones import same
from multiexit.backbones.base import Backbone
from multiexit.backbones.layers.recorded import RecordedBackbone
from multiexit.backbones.transformers import configs, task_heads, transformer
from multiexit.backbones.transformers.families import FAMILIES
from multiexit.backbones.transformers.transformer import TransformerBackbone
from multiexit.backbones.transformers.trials import padding_known, trial_rows
from multiexit.backbones.truncation.head_steps import steps
from multiexit.backbones.truncation.library_form import LibraryForm
from multiexit.files.unreadable import one_line

CLASSES = (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING,
)
"""By the class of a configuration, the class that classifies whole rows."""

OF_TOKENS = (MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,)
"""By the class of a configuration, the class that classifies each token."""


def transformers_form(
    backbone: Backbone,
    count: int,
    num_classes: int,
    labels: Sequence[Any] | None,
    problem: str,
) -> LibraryForm:
    """Make the network of transformers' own class that has a backbone's first stages.

    Its weights share their memory with the backbone's, and its mode is evaluation.

    Args:
        backbone: of a network of transformers.
        count: how many stages it has.
        num_classes: K; 1 for regression.
        labels: the classes' names, or None.
        problem: the model's.

    Raises:
        ValueError: a backbone that the library has no class for, or one that its class can't be
            made to be.
    """
    if (backbone.spec or {}).get("kind") != "transformers":
        raise ValueError("its backbone has no description as a network of transformers")
    trunk = _trunk(backbone, count)
    network = _network(backbone, trunk, num_classes, labels, problem)
    # A chain of one layer isn't found: its head is known from a network of two.
    sample = network
    if trunk.layers == 1 and isinstance(backbone, RecordedBackbone):
        sample = _network(backbone, _trunk(backbone, count + 1), num_classes, None, problem)
    input_shape = (backbone.spec or {}).get("input_shape")
    staged = transformer.from_instance(sample, input_shape)
    if staged.classifier is None:
        raise ValueError(f"the head of {type(network).__name__} can't be told from its forward")
    names = {id(module): name for name, module in sample.named_modules()}
    head = [
        network.get_submodule(names[id(step)]) if id(step) in names else step
        for step in steps(staged.classifier.read, staged.classifier.linear)
    ]

    def answers(rows: dict[str, Tensor]) -> Tensor:
        with padding_known(network.config):
            logits = network(**rows).logits
        if problem == "token-classification":  # what padding gets is nobody's answer
            return logits * rows["attention_mask"].unsqueeze(-1)
        return logits

    return LibraryForm(network, head, trial_rows(network, input_shape), answers)


class _Trunk(NamedTuple):
    """The first stages of a backbone.

    Args:
        state: their tensors by name, shared.
        layers, of: how many layers of how many they have.
        groups: of shared layers, how many; None where none are shared.
    """

    state: dict[str, Tensor]
    layers: int
    of: int
    groups: int | None


def _network(
    backbone: Backbone,
    trunk: _Trunk,
    num_classes: int,
    labels: Sequence[Any] | None,
    problem: str,
) -> Any:
    """The network, in evaluation mode; what the trunk doesn't have is random."""
    spec: dict[str, Any] = backbone.spec or {}
    config: Any = configs.config_from_spec(spec["config"], spec.get("attention"))
    kind = _class(spec.get("model", ""), config, problem)
    p = next(backbone.parameters())
    options = {"dtype": p.dtype, "attn_implementation": spec.get("attention")}
    try:
        _cut(config, trunk)
        _set_classes(config, num_classes, labels)
        config.problem_type = task_heads.PROBLEM_TYPES.get(problem)
        with same.without_init():
            network: Any = kind._from_config(config, **options)
    except Exception as error:  # whatever a class says to settings that it doesn't take
        raise ValueError(f"{kind.__name__} can't be made: {one_line(error)}") from error
    network.to(p.device).eval()
    prefix = "" if spec.get("model") == kind.__name__ else f"{network.base_model_prefix}."
    state = {f"{prefix}{name}": tensor for name, tensor in trunk.state.items()}
    try:
        unset = network.load_state_dict(state, strict=False, assign=True).missing_keys
    except RuntimeError as error:
        raise ValueError(f"{kind.__name__} has other sizes: {one_line(error)}") from error
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if name in unset:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / 8)
    return network


def _trunk(backbone: Backbone, count: int) -> _Trunk:
    """A backbone's first stages, their parts by the names that the network has for them."""
    parts: dict[str, nn.Module] = {}
    if isinstance(backbone, TransformerBackbone):
        family, order = backbone.family, backbone.order[:count]
        layers, total = count, backbone.num_stages
        groups = None if family.groups is None else len({*order})
        if groups and order != [int(i / (count / groups)) for i in range(count)]:
            raise ValueError("its layers are shared in an order that no configuration has")
        parts["embeddings"] = backbone.embeddings
        parts[family.projection or "projection"] = backbone.projection
        parts |= {f"{family.layers}.{i}": backbone.layers[i] for i in order}
    elif isinstance(backbone, RecordedBackbone):
        names = backbone.chain.layers
        layers, total, groups = backbone.chain.ends[count - 1] + 1, len(names), None
        parts[""] = backbone.shell
        parts[(backbone.spec or {}).get("norm") or "norm"] = backbone.norm
        parts |= dict(zip(names[:layers], backbone.layers[:layers], strict=True))
    else:
        raise ValueError(f"its backbone, a {type(backbone).__name__}, isn't a chain of layers")
    state = {
        f"{name}.{inner}".removeprefix("."): tensor
        for name, part in parts.items()
        for inner, tensor in part.state_dict().items()
    }
    return _Trunk(state, layers, total, groups)


def _class(name: str, config: PretrainedConfig, problem: str) -> Any:
    """The class of this name if it classifies so; else the one for such a configuration."""
    tokens = problem == "token-classification"
    if name.endswith(task_heads.OF_TOKENS if tokens else task_heads.ENDINGS):
        return getattr(transformers, name)
    for classes in OF_TOKENS if tokens else CLASSES:
        if type(config) in classes:
            kind = classes[type(config)]
            return kind[0] if isinstance(kind, tuple) else kind
    raise ValueError(f"transformers has no class that classifies by a {type(config).__name__}")


def _cut(config: Any, trunk: _Trunk) -> None:
    """Let a configuration have as many layers as the trunk, and say of each of them what it did."""
    nested = (getattr(config, name, None) for name in ("text_config", "vision_config"))
    sizes: Any = next(
        (c for c in (config, *nested) if getattr(c, "num_hidden_layers", None) == trunk.of), None
    )
    if sizes is None:
        raise ValueError(f"{type(config).__name__} doesn't count its layers by one number")
    for key, value in vars(sizes).items():
        of_layers = "layer" in key or "window" in key
        if of_layers and isinstance(value, list) and len(value) == trunk.of:
            setattr(sizes, key, value[: trunk.layers])
    sizes.num_hidden_layers = trunk.layers
    if trunk.groups is not None:
        setattr(sizes, FAMILIES[config.model_type].groups or "", trunk.groups)


def _set_classes(config: Any, num_classes: int, labels: Sequence[Any] | None) -> None:
    """Let a configuration tell as many classes apart, by these names."""
    config.num_labels = num_classes
    if labels:
        config.id2label = dict(enumerate(map(str, labels)))
        config.label2id = {label: index for index, label in config.id2label.items()}
