"""BERT-like encoders of transformers, layer by layer: BERT, ALBERT and their relatives.

Letters: B batch rows, T tokens, H width.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
)

from multiexit.backbones.base import Backbone, Carry
from multiexit.backbones.classifier import TOKEN_PROBLEM, NetworkHead
from multiexit.backbones.transformers import (
    attention_heads,
    configs,
    recorded_transformers,
    task_heads,
    text_inputs,
)
from multiexit.backbones.transformers.families import FAMILIES, Family, part
from multiexit.backbones.transformers.text_backbone import TextBackbone
from multiexit.backbones.transformers.text_inputs import Limits
from multiexit.backbones.verify import check_text
from multiexit.files import schema
from multiexit.files.unreadable import one_line
from multiexit_runner.user_line import user_level

MAY_NOT_LOOK = "allow_is_bidirectional_skip" in signature(create_bidirectional_mask).parameters
"""Whether this version of transformers can make a mask without a look at its values."""


class TransformerBackbone(TextBackbone):
    """One stage per layer; feature i equals the library's own `hidden_states[i + 1]`.

    The submodules are shared with the model they come from, not copied. ALBERT's shared layers
    are kept once and used again: layer i runs group `⌊i / (layers / groups)⌋` (Lan et al. 2020).

    Args:
        model: a bare encoder (`AutoModel`) or a task model around one, of a type in
            `multiexit.backbones.transformers.families.FAMILIES`;
            the classifier of a `…ForSequenceClassification` or `…ForTokenClassification` is kept.
        spec: where one is known that makes it again; else it is taken from the model, and is None
            if its modules aren't what its configuration says.

    Raises:
        ValueError: a model of another type, or a decoder.
    """

    def __init__(self, model: PreTrainedModel, spec: dict[str, Any] | None = None):
        encoder: Any = model.base_model
        config = encoder.config
        if config.model_type not in FAMILIES:
            raise ValueError(
                f"{config.model_type!r} is none of {', '.join(FAMILIES)}, whose parts are known: "
                "multiexit.wrap takes others by their own forward"
            )
        if getattr(config, "is_decoder", False):
            raise ValueError("can't stage a decoder: set is_decoder=False in its configuration")
        configs.check_attention(config)
        layers, order = _layers(encoder)
        classifier = task_heads.classifier_of(model)
        config = _current_config(model, order, classifier)
        super().__init__(
            feature_shapes=[(None, config.hidden_size)] * len(order),
            head="pooler",
            pool="first",
            spec=spec,
            pooler=_pooler(encoder),
            classifier=classifier,
        )
        self.config: Any = config
        self.embeddings = encoder.embeddings
        self.projection = _projection(encoder)
        self.layers = layers
        self.order = order
        if spec is None:
            own_spec = {
                "kind": "transformers",
                "config": config.to_dict(),
                "attention": config._attn_implementation,
            }
            self.spec = own_spec if _is_rebuilt_by(self, own_spec) else None
            self.set_classifier(classifier)
            check_text(self, model)

    @property
    def family(self) -> Family:
        """The row of its type in `multiexit.backbones.transformers.families`."""
        return FAMILIES[self.config.model_type]

    @property
    def input_limits(self) -> Limits:
        return text_inputs.limits(self.embeddings)

    def begin(self, inputs: Mapping[str, Any]) -> Carry:
        inputs = dict(inputs)
        valid_BT, first_B = inputs.pop("attention_mask"), inputs.pop("first_B")
        if not self.family.segments:
            del inputs["token_type_ids"]
        x_BTH = self.projection(self.embeddings(**inputs))
        # By position: the second parameter's name changed within transformers 5.
        skip = self.infers and not torch.compiler.is_compiling()
        options: dict[str, Any] = {"allow_is_bidirectional_skip": skip} if MAY_NOT_LOOK else {}
        mask = create_bidirectional_mask(self.config, x_BTH, valid_BT, **options)
        return {"x_BTH": x_BTH, "mask": mask, "valid_BT": valid_BT, "first_B": first_B}

    def stage(self, carry: Carry, index: int) -> tuple[Carry, Tensor]:
        x_BTH = self.stage_module(index)(carry["x_BTH"], carry["mask"])
        return {**carry, "x_BTH": x_BTH}, x_BTH

    def stage_module(self, index: int) -> nn.Module:
        return self.layers[self.order[index]]


def from_instance(
    model: Any,
    input_shape: Sequence[int] | None = None,
    layout: str | Sequence[str] | None = None,
) -> Backbone:
    """Stage a model of transformers: by its family's parts, or by its own forward.

    Args:
        model: bare, or with a head; that of a model that classifies rows is kept.
        input_shape: of one row; None is the model's own, of text any number of tokens.
        layout: of the features, where it can't be told.

    Raises:
        ValueError: a model that can't be taken apart, with the reason.
    """
    config = model.base_model.config
    if config.model_type in FAMILIES and not getattr(config, "is_decoder", False):
        if input_shape is not None or layout is not None:
            name, value = (
                ("layout", layout) if input_shape is None else ("input_shape", input_shape)
            )
            raise ValueError(
                f"{name}={value!r}: a {type(model).__name__} takes rows of any number of tokens, "
                f"and its features are tokens; leave {name}= out"
            )
        backbone = TransformerBackbone(model)
        if task_heads.classifies(model) and not task_heads.is_library_classifier(model):
            warnings.warn(
                f"{type(model).__name__} has a forward of its own, so its head isn't kept: the "
                "last exit starts anew, like the others; classifier= names the head's parts",
                stacklevel=user_level(),
            )
        return backbone
    return recorded_transformers.from_instance(model, None, input_shape, layout)


def from_name(name: str, input_shape: Sequence[int] | None = None, **kwargs: Any) -> Backbone:
    """Load a network from a hub name or a local folder, in float32 unless `dtype` says else.

    One that its configuration calls a `…ForSequenceClassification`, `…ForTokenClassification`,
    `…ForImageClassification` or `…ForAudioClassification` comes with its classifier; of any other
    the encoder is taken.

    Args:
        name: of the hub, or the folder.
        input_shape: as for `from_instance`.
        kwargs: for the library's `from_pretrained`.

    Raises:
        ValueError: a network of another type; weights that lack a part of the encoder, or don't
            fit.
    """
    config = configs.check_source(name, **kwargs)
    if "model_type" not in config:
        raise ValueError(
            f"no model {name!r}: it has no config.json with a model_type, as a network's "
            "save_pretrained writes it"
        )
    if config["model_type"] not in CONFIG_MAPPING:
        raise ValueError(
            f"no model {name!r}: its config.json has model_type {config['model_type']!r}, which "
            "this version of transformers doesn't know"
        )
    auto = _auto_class(
        config["model_type"], [str(name) for name in config.get("architectures") or []]
    )
    defaults = {} if "torch_dtype" in kwargs else {"dtype": torch.float32}  # its old name
    options = {**defaults, **kwargs, **configs.ONLY}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        with _quiet():
            model, info = auto.from_pretrained(name, **options)
    except RuntimeError as error:
        raise ValueError(f"the weights of {name!r} don't fit: {one_line(error)}") from error
    if info["mismatched_keys"] and not kwargs.get("ignore_mismatched_sizes"):
        key, there, needed = min(info["mismatched_keys"])
        raise ValueError(
            f"the weights of {name!r} don't fit: {key} has the shape {[*there]}, and by the "
            f"configuration it must be {[*needed]}"
        )
    random_keys = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    return _without_random_parts(name, model, random_keys, input_shape)


AUTO = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
    "ForImageClassification": AutoModelForImageClassification,
    "ForAudioClassification": AutoModelForAudioClassification,
    "EncoderModel": AutoModelForTextEncoding,
}
"""By how the class's name ends that a configuration has."""


def _auto_class(model_type: str, architectures: Sequence[str]) -> Any:
    """The class of transformers that loads such a network."""
    for architecture in architectures:
        for ending, auto in AUTO.items():
            if architecture.endswith(ending):
                is_sound = model_type in MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES
                return AutoModelForAudioClassification if is_sound else auto
    return AutoModel


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's tables of tensors that lack or don't fit: what matters is said here."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _without_random_parts(
    name: str, model: Any, random_keys: set[str], input_shape: Sequence[int] | None
) -> Backbone:
    """The backbone of a loaded model, without what was drawn at random in loading it."""
    encoder = model.base_model
    prefix = "" if model is encoder else f"{model.base_model_prefix}."
    trunk_keys = {f"{prefix}{key}" for key in encoder.state_dict() if not key.startswith("pooler.")}
    if lost := sorted(random_keys & trunk_keys):
        raise ValueError(
            f"the weights of {name!r} lack {len(lost)} tensors of the encoder, such as {lost[:3]}: "
            "they would be random. If you mean it, load it yourself and wrap the instance"
        )
    backbone = from_instance(model, input_shape)
    head = backbone.classifier
    head_ids = [] if head is None else [id(p) for p in head.parameters()]
    missing = [k for k, p in model.named_parameters() if k in random_keys and id(p) in head_ids]
    if missing:
        warnings.warn(
            f"{name!r} calls itself a {type(model).__name__}, and its weights lack {missing}: the "
            "last exit starts anew, like the others",
            stacklevel=user_level(),
        )
        backbone.set_classifier(None)
    if any(key.startswith(f"{prefix}pooler.") for key in random_keys):
        backbone.set_pooler(None)
    return backbone


def from_spec(spec: dict[str, Any]) -> Backbone:
    """Make the architecture of a saved spec, with random weights and without any download.

    Raises:
        ValueError: an order that its layers don't have.
    """
    return recorded_transformers.from_spec(spec) if "model" in spec else _family_from_spec(spec)


def _family_from_spec(spec: dict[str, Any]) -> TransformerBackbone:
    config = configs.config_from_spec(spec["config"], spec.get("attention"))
    auto = AutoModelForSequenceClassification if spec.get("classifier") is True else AutoModel
    auto = AutoModelForTokenClassification if spec.get("classifier") == TOKEN_PROBLEM else auto
    backbone = TransformerBackbone(
        auto.from_config(
            config,
            dtype=torch.float32,
            attn_implementation=spec.get("attention"),
            trust_remote_code=False,
        ),
        spec,
    )
    if "order" in spec:  # of some of ALBERT's layers
        order, num_layers = list(spec["order"]), len(backbone.layers)
        if len(order) != backbone.num_stages or set(order) != set(range(num_layers)):
            right = f"{backbone.num_stages} numbers, each of 0..{num_layers - 1} in it"
            raise schema.wrong("backbone.order", order, right)
        backbone.order = order
    if "heads" in spec:  # not all of them
        attention_heads.prune(backbone, spec["heads"])
    if backbone.classifier is None:
        backbone.set_pooler(None)  # a random one
    return backbone


def _current_config(model: Any, order: list[int], classifier: NetworkHead | None) -> Any:
    """A model's configuration, with the sizes that its modules have now."""
    encoder = model.base_model
    config = encoder.config
    sizes = text_inputs.limits(encoder.embeddings).sizes
    current_sizes = {
        "vocab_size": sizes.get("input_ids"),
        "type_vocab_size": sizes.get("token_type_ids"),
        "max_position_embeddings": sizes.get("position_ids"),
        "num_hidden_layers": len(order),
        "num_labels": None if classifier is None else classifier.num_classes,
    }
    stale = {k: v for k, v in current_sizes.items() if v is not None and getattr(config, k, v) != v}
    if not stale:
        return config
    config = copy.deepcopy(config)
    for key, value in stale.items():
        setattr(config, key, value)
    return config


def _is_rebuilt_by(backbone: TransformerBackbone, spec: dict[str, Any]) -> bool:
    """Whether what a spec makes has the same modules, sizes and settings in them."""
    try:
        own = backbone.classifier
        of_tokens = own is not None and own.problem == TOKEN_PROBLEM
        kind = TOKEN_PROBLEM if of_tokens else own is not None
        with torch.device("meta"):
            rebuilt = _family_from_spec({**spec, "classifier": kind})
    except ValueError:  # settings that can't be written, or that no longer go together
        return False
    return _structure(rebuilt) == _structure(backbone)


def _structure(backbone: TransformerBackbone) -> list[Any]:
    parts: list[nn.Module] = [backbone.embeddings, backbone.projection, backbone.layers]
    if backbone.classifier is not None:
        parts.append(backbone.classifier)
    return [
        (
            name,
            type(module),
            module.extra_repr(),
            {k: v for k, v in vars(module).items() if isinstance(v, int | float | str)}
            | dict.fromkeys(("training", "labels", "problem", "_is_hf_initialized"))
            | {"gradient_checkpointing": None},
            [(key, p.shape) for key, p in module.named_parameters(recurse=False)],
        )
        for part in parts
        for name, module in part.named_modules()
    ]


def _layers(encoder: Any) -> tuple[nn.ModuleList, list[int]]:
    """The distinct layers, and which of them each stage runs."""
    config = encoder.config
    family = FAMILIES[config.model_type]
    layers = part(encoder, family.layers)
    if family.groups is None:
        return layers, list(range(len(layers)))
    depth, groups = config.num_hidden_layers, getattr(config, family.groups)
    return layers, [int(i / (depth / groups)) for i in range(depth)]


def _projection(encoder: Any) -> nn.Module:
    """The projection of embeddings to the layers' width, where they differ."""
    name = FAMILIES[encoder.config.model_type].projection
    projection = None if name is None else part(encoder, name)
    return nn.Identity() if projection is None else projection


def _pooler(encoder: Any) -> nn.Linear | None:
    pooler = getattr(encoder, "pooler", None)  # absent in some types, None in some instances
    if pooler is None or isinstance(pooler, nn.Linear):
        return pooler
    return pooler.dense
