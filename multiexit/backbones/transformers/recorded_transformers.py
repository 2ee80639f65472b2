"""Models of transformers by their own forward: encoders and decoders of text, images and sound.

Letters: B batch rows, T tokens, H width, K classes.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from multiexit.backbones import same
from multiexit.backbones.base import Carry
from multiexit.backbones.classifier import TOKEN_PROBLEM, Classifier
from multiexit.backbones.layers import recording, tails
from multiexit.backbones.layers.recorded import RecordedBackbone
from multiexit.backbones.layers.recording import Batch, Ending, Recording
from multiexit.backbones.running import in_precision
from multiexit.backbones.sequential import sizes
from multiexit.backbones.transformers import configs, task_heads, text_inputs
from multiexit.backbones.transformers.text_inputs import Limits
from multiexit.files import schema
from multiexit.runtime import evaluating, user_level

TOKENS = 9
"""The length of the rows that a network is tried on."""


class RecordedText(RecordedBackbone):
    """A `RecordedBackbone` that reads tokens, where rows may have padding anywhere.

    Where padding comes first, a row's positions count from its first real token, and its features
    stand in the order (first real token … last, padding): a row's answer doesn't depend on its
    batch.

    Args:
        limits: the sizes of its tables, and how many tokens it takes.
        takes: the names of inputs that its forward has.
        fills_up: whether it fills rows up with padding of its own, which features don't have.
        arguments: as `RecordedBackbone` takes them.
    """

    def __init__(self, limits: Limits, takes: Sequence[str], fills_up: bool, **arguments: Any):
        super().__init__(**arguments)
        self._limits = limits
        self.takes = list(takes)
        self.fills_up = fills_up

    @text_inputs.by_known_names
    def start(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Carry:
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        for name in ("position_ids", "inputs_embeds"):
            if inputs[name] is not None and name not in self.takes:
                raise ValueError(f"this network takes no {name}")
        infers = not (self.training or torch.is_grad_enabled())
        if infers and attention_mask is None and self.pool == "last":
            self._check_no_padding(input_ids)
        return self.begin(text_inputs.read(inputs, self._limits, infers))

    def _check_no_padding(self, input_ids: Tensor | None) -> None:
        """Refuse rows that seem to have padding, where no mask says which token is the last one."""
        padding = getattr(_text_config(self.shell.config), "pad_token_id", None)
        if input_ids is None or padding is None or torch.compiler.is_compiling():
            return
        if bool((input_ids == padding).any()):
            raise ValueError(
                f"rows hold the padding token {padding}, and this network answers at a row's last "
                "real token: give attention_mask, 1 where a token is real and 0 where it is padding"
            )

    def begin(self, inputs: Mapping[str, Any]) -> Carry:
        given = {k: v for k, v in inputs.items() if v is not None and k in self.takes}
        valid_BT = given.get("attention_mask")
        if valid_BT is not None:  # some subtract it from 1, which bools can't
            given["attention_mask"] = valid_BT.to(torch.long)
            valid_BT = valid_BT.to(torch.bool)
        if "use_cache" in self.takes:
            given["use_cache"] = False
        carry = super().begin(given)
        if valid_BT is None:
            valid_BT = torch.ones(given[next(iter(given))].shape[:2], dtype=torch.bool)
            valid_BT = valid_BT.to(carry["x"].device)
        return {**carry, "valid_BT": valid_BT, "first_B": inputs.get("first_B")}

    def stage(self, carry: Carry, index: int) -> tuple[Carry, Tensor]:
        carry, feature = super().stage(carry, index)
        return carry, feature[:, : carry["valid_BT"].shape[1]] if self.fills_up else feature

    def limits(self) -> tuple[dict[str, int], int | None]:
        return dict(self._limits.sizes), self._limits.tokens

    def example_inputs(self, batch: int = 1, tokens: int = 128) -> dict[str, Tensor]:
        tokens = min(tokens, self._limits.tokens or tokens)
        device = next(self.parameters()).device
        token = min(5, self._limits.sizes["input_ids"] - 1)
        return {
            "input_ids": torch.full((batch, tokens), token, device=device),
            "attention_mask": torch.ones(batch, tokens, dtype=torch.long, device=device),
        }


class RecordedPixels(RecordedBackbone):
    """A `RecordedBackbone` that reads images."""

    def start(self, pixel_values: Tensor) -> Carry:  # type: ignore[override]
        return self.begin({"pixel_values": in_precision(pixel_values, self)})


class RecordedWaves(RecordedBackbone):
    """A `RecordedBackbone` that reads sound as waves, or what its extractor calls so."""

    def start(self, input_values: Tensor) -> Carry:  # type: ignore[override]
        return self.begin({"input_values": in_precision(input_values, self)})


class RecordedFeatures(RecordedBackbone):
    """A `RecordedBackbone` that reads sound as spectra."""

    def start(self, input_features: Tensor) -> Carry:  # type: ignore[override]
        return self.begin({"input_features": in_precision(input_features, self)})


class RecordedVideos(RecordedBackbone):
    """A `RecordedBackbone` that reads videos, by the name that some networks have for them."""

    def start(self, pixel_values_videos: Tensor) -> Carry:  # type: ignore[override]
        return self.begin({"pixel_values_videos": in_precision(pixel_values_videos, self)})


ROWS = {
    "pixel_values_videos": RecordedVideos,
    "pixel_values": RecordedPixels,
    "input_values": RecordedWaves,
    "input_features": RecordedFeatures,
}
"""By the name of a model's main input, where that isn't tokens."""


def from_instance(
    model: Any,
    spec: dict[str, Any] | None = None,
    input_shape: Sequence[int] | None = None,
    layout: str | Sequence[str] | None = None,
) -> RecordedBackbone:
    """Stage a model of transformers by its own forward: an exit after each layer.

    Args:
        model: an encoder or decoder, bare or a `…ForSequenceClassification`,
            `…ForTokenClassification`, `…ForImageClassification`, `…ForAudioClassification`, whose
            own head is kept.
        spec: by which it is made again; None is found from the model.
        input_shape: of one row, where rows aren't text; None is the model's own.
        layout: of the features, where it can't be told.

    Raises:
        ValueError: a model that can't be taken apart, with the reason.
    """
    name = type(model).__name__
    if "For" in name and not task_heads.classifies(model):
        model = model.base_model
    parts = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    if getattr(model.config, "is_encoder_decoder", False) and "decoder" in parts:
        raise ValueError(
            f"{type(model).__name__} has an encoder and a decoder, and exits need one chain of "
            "layers: wrap its encoder alone, such as T5EncoderModel or model.get_encoder()"
        )
    if task_heads.classifies(model):
        task_heads.check_problem(model.config)
    try:
        return _Builder(model, input_shape, layout).build(spec)
    except Exception as error:  # whatever a network says to what it is tried on
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(
            f"can't wrap {type(model).__name__} by itself: {reason}. Name parts that run one after "
            "another, stages=['…', …], or register an adapter: "
            "@multiexit.wrap.register(YourClass)"
        ) from error


def from_spec(spec: dict[str, Any]) -> RecordedBackbone:
    """Make the architecture of a saved spec, with random weights and without any download.

    Raises:
        ValueError: a class that transformers doesn't have.
    """
    with same.without_init():
        model = _make(spec)
    return from_instance(model, spec, spec.get("input_shape"))


def trial_rows(model: Any, input_shape: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Random rows for a model of transformers, padded at their end where they are text.

    Args:
        model: as for `from_instance`.
        input_shape: of one row, where rows aren't text; None is the model's own.
    """
    with padding_known(model.config):
        inputs = _Builder(model, input_shape, None)._batch(4, 1).inputs
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


def _make(spec: dict[str, Any]) -> Any:
    kind = getattr(transformers, spec["model"], None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise schema.wrong("backbone.model", spec["model"], "the name of a model of transformers")
    config = configs.config_from_spec(spec["config"], spec.get("attention"))
    options = {"dtype": torch.float32, "attn_implementation": spec.get("attention")}
    return kind._from_config(config, **options)


class _Builder:
    """One model, while it is taken apart: what is known of it so far."""

    def __init__(self, model: Any, input_shape: Any, layout: Any):
        self.model, self.layout = model, layout
        self.config = model.config
        self.settings = model.config.to_dict()  # before a padding token is lent to it
        parameters = signature(model.forward).parameters
        self.takes = list(parameters)
        if any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
            self.takes += ["use_cache"] if hasattr(_text_config(model.config), "use_cache") else []
        self.is_text = model.main_input_name == "input_ids"
        self.input_shape = None if self.is_text else self._input_shape(input_shape)

    def build(self, spec: dict[str, Any] | None) -> RecordedBackbone:
        self.is_remade = spec is not None
        self.gives_logits = spec is not None and spec.get("classifier") in (True, TOKEN_PROBLEM)
        if spec is not None and any(p.is_meta for p in self.model.parameters()):
            head = self._classifier(recording.described_ending(spec))
            arguments = recording.skeleton(self.model, spec)
            return self._made({**arguments, "classifier": head}, False)
        with padding_known(self.config):
            batches = [self._batch(2, 0), self._batch(3, 1)]
            if self.is_text:
                batches += [self._batch(2, 2, TOKENS + 4), self._batch(3, 3, padded=False)]
            first_run = recording.record_layers(self.model, batches)
            if spec is None:
                ending = self._ending(first_run, batches[0])
                spec = self._spec(first_run, ending, batches[0])
                backbone = self._backbone(first_run, spec)
                recording.check(backbone, self.model, first_run, batches)
            else:
                backbone = self._backbone(first_run, spec)
        return backbone

    def _backbone(self, first_run: Recording, spec: dict[str, Any]) -> RecordedBackbone:
        ending = recording.described_ending(spec)
        arguments = {
            **recording.parts(self.model, first_run, ending),
            "feature_shapes": [tuple(shape) for shape in spec["chain"]["shapes"]],
            "layouts": spec["chain"]["layouts"],
            "pool": spec["pool"],
            "spec": spec,
            "classifier": self._classifier(ending),
        }
        fills_up = self.is_text and first_run.features[0].shape[1] != TOKENS
        return self._made(arguments, fills_up)

    def _made(self, arguments: dict[str, Any], fills_up: bool) -> RecordedBackbone:
        name = self.model.main_input_name
        if not self.is_text:
            assert self.input_shape is not None
            example = {name: torch.zeros(1, *self.input_shape)}
            return ROWS[name](**arguments, example=example)
        takes = [name for name in (*text_inputs.NAMES, "use_cache") if name in self.takes]
        return RecordedText(self._limits(), takes, fills_up, **arguments, example={})

    def _input_shape(self, input_shape: Any) -> tuple[int, ...]:
        """The shape of one row of images or sound."""
        config, name = self.config, self.model.main_input_name
        if name not in ROWS:
            raise ValueError(f"its main input is {name!r}, not one of {', '.join(ROWS)}")
        if input_shape is not None:
            return tuple(sizes(input_shape))
        if name.startswith("pixel_values"):
            config = getattr(config, "vision_config", config)
            size = getattr(config, "image_size", None) or getattr(config, "crop_size", 224)
            height, width = size if isinstance(size, list | tuple) else (size, size)
            frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
            image = getattr(config, "num_channels", None) or 3, height, width
            return image if frames is None else (frames, *image)
        bins = getattr(config, "num_mel_bins", None)
        if bins and hasattr(config, "max_source_positions"):
            return bins, 2 * config.max_source_positions
        if bins and hasattr(config, "max_length"):
            return config.max_length, bins
        if hasattr(config, "feature_projection_input_dim"):
            return 100, config.feature_projection_input_dim
        return (16_000,)  # a second

    def _batch(self, rows: int, seed: int, tokens: int = TOKENS, padded: bool = True) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        p = next(self.model.parameters())
        name = self.model.main_input_name
        if not self.is_text:
            assert self.input_shape is not None
            x = torch.randn(rows, *self.input_shape, generator=generator)
            return Batch({name: x.to(p.device, p.dtype)}, rows)
        most = self._limits().tokens
        tokens = tokens if most is None else min(tokens, most)
        padding = _text_config(self.config).pad_token_id
        vocabulary = [i for i in range(self._limits().sizes["input_ids"]) if i != padding][:1000]
        chosen = torch.randint(len(vocabulary), (rows, tokens), generator=generator)
        ids_BT = torch.tensor(vocabulary)[chosen]
        valid_BT = torch.ones(rows, tokens, dtype=torch.bool)
        if padded:
            for row in range(1, rows):
                valid_BT[row, max(1, tokens - 2 * row) :] = False
        ids_BT[~valid_BT] = padding
        inputs = {"input_ids": ids_BT.to(p.device), "attention_mask": valid_BT.long().to(p.device)}
        options = {"use_cache": False} if "use_cache" in self.takes else {}
        return Batch({**inputs, **options}, rows, tokens, valid_BT.to(p.device))

    def _limits(self) -> Limits:
        try:
            embeddings: Any = self.model.get_input_embeddings()
        except NotImplementedError as error:
            raise ValueError(
                "it has no table of embeddings by tokens (get_input_embeddings), so that it isn't "
                "known which tokens it takes"
            ) from error
        count, width = embeddings.weight.shape
        sizes = {"input_ids": int(count)}
        tables = {n: m for n, m in self.model.named_modules() if isinstance(m, nn.Embedding)}
        tokens = None
        for name, table in tables.items():
            last = name.rpartition(".")[2]
            if last == "token_type_embeddings":
                sizes["token_type_ids"] = table.num_embeddings
            if last in ("wpe", "position_embeddings", "embed_positions"):
                padding = table.padding_idx
                count = table.num_embeddings - (0 if padding is None else padding + 1)
                tokens = min(count, getattr(self.config, "max_position_embeddings", count))
        return Limits(sizes, tokens, int(width))

    def _ending(self, first_run: Recording, batch: Batch) -> Ending | None:
        target = getattr(first_run.output, "logits", None)
        self.gives_logits = isinstance(target, Tensor) and target.ndim == 2
        target = first_run.output[0] if target is None else target
        return recording.find_ending(self.model, first_run, target, batch.valid_BT)

    def _classifier(self, ending: Ending | None) -> Classifier | None:
        """Its own head, of a model that classifies whole rows, or tokens."""
        if not task_heads.classifies(self.model) and not self.gives_logits:
            return None
        classes = self.config.num_labels
        labels = task_heads.labels(self.config, classes)
        head = None if ending is None else recording.classifier(self.model, ending, classes, labels)
        if head is not None and task_heads.classifies_tokens(self.model):
            head.problem = TOKEN_PROBLEM
        if head is None and not self.is_remade:
            warnings.warn(
                f"the head of {type(self.model).__name__} can't be told from its forward: the last "
                "exit starts anew, like the others",
                stacklevel=user_level(),
            )
        return head

    def _has_tokens(self, first_run: Recording) -> bool:
        """All that transformers hands from layer to layer in rank 3 is [B, T, H]."""
        return self.layout is None and all(feature.ndim == 3 for feature in first_run.features)

    def _pool(self, ending: Ending | None, layouts: Sequence[str]) -> str:
        """The network's own pooling of its last feature, or the one that suits its kind."""
        if layouts[-1] != "tokens":
            return "mean"
        known = next(tails.pooling(ending.names), None) if ending else None
        if known is not None:
            return known
        if self.is_text:
            return "last" if self._is_causal() else "first"
        names = [name.rpartition(".")[2] for name, _ in self.model.named_parameters()]
        has_class = any(n in ("cls_token", "class_token", "class_embedding") for n in names)
        return "first" if has_class else "mean"

    def _is_causal(self) -> bool:
        """Whether another last token leaves what the first one becomes as it was."""
        batch = self._batch(1, 0, padded=False)
        ids_BT = batch.inputs["input_ids"].clone()
        ids_BT[0, -1] = ids_BT[0, 0] if ids_BT[0, -1] != ids_BT[0, 0] else ids_BT[0, 1]
        with evaluating(self.model), torch.no_grad():
            one = self.model.base_model(**batch.inputs)[0]
            other = self.model.base_model(**{**batch.inputs, "input_ids": ids_BT})[0]
        return bool(torch.equal(one[0, 0], other[0, 0]))

    def _spec(self, first_run: Recording, ending: Ending | None, batch: Batch) -> dict[str, Any]:
        """The description by which the model is made again, if that makes the same one."""
        has_tokens = self._has_tokens(first_run)
        shapes, layouts = recording.shapes_and_layouts(
            self.model, first_run, batch, "tokens" if has_tokens else self.layout
        )
        if self.is_text and not has_tokens:
            raise ValueError("its layers hand on no vectors for tokens, [B, T, H]")
        if has_tokens:
            shapes = [(None, shape[-1]) for shape in shapes]
        spec = {
            "kind": "transformers",
            "model": type(self.model).__name__,
            "config": self.settings,
            "attention": self.config._attn_implementation,
            "pool": self._pool(ending, layouts),
            "chain": recording.describe_chain(first_run, shapes, layouts),
            **recording.describe(ending),
        }
        return spec if self.is_text else {**spec, "input_shape": list(self.input_shape or ())}


@contextmanager
def padding_known(config: Any) -> Iterator[None]:
    """Inside, a network that was given no padding token has one, so that it takes batches."""
    text = _text_config(config)
    missing = getattr(text, "pad_token_id", 0) is None
    if missing:
        text.pad_token_id = 0
    try:
        yield
    finally:
        if missing:
            text.pad_token_id = None


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config
