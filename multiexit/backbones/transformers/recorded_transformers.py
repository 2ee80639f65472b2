"""Models of transformers by their own forward: encoders and decoders of text, images and sound.

Letters: B batch rows, T tokens, H width, K classes.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from multiexit.backbones import same
from multiexit.backbones.classifier import TOKEN_PROBLEM, NetworkHead
from multiexit.backbones.layers import comparing, describing, endings, recording, tails
from multiexit.backbones.layers.endings import Ending
from multiexit.backbones.layers.recorded import RecordedBackbone
from multiexit.backbones.layers.recording import Recording
from multiexit.backbones.transformers import configs, parallel_lists, task_heads, trials
from multiexit.backbones.transformers.recorded_rows import ROWS
from multiexit.backbones.transformers.recorded_text import RecordedText
from multiexit.backbones.transformers.trials import RowTrial, TextTrial
from multiexit.files import schema
from multiexit.runtime import buffers_kept, evaluating
from multiexit_runner.user_line import user_level


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
        input_shape: of one row. Of text `(T,)`: rows are filled up to T tokens; None is any number
            of tokens, or the model's own size of images and sound.
        layout: of the features, where it can't be told.

    Raises:
        ValueError: a model that can't be taken apart, with the reason.
    """
    name = type(model).__name__
    if "For" in name and not task_heads.classifies(model):
        if "Classification" in name or name.endswith("XVector"):
            warnings.warn(
                f"the head of {name} isn't one that gives a row's classes from the last layer: the "
                "last exit starts anew, like the others",
                stacklevel=user_level(),
            )
        model = model.base_model
    if model.main_input_name == "input_ids":  # others have no masks
        configs.check_attention(model.config)
    parts = {path.rpartition(".")[2] for path, _ in model.named_modules()}
    if getattr(model.config, "is_encoder_decoder", False) and "decoder" in parts:
        raise ValueError(
            f"{type(model).__name__} has an encoder and a decoder, and exits need one chain of "
            "layers: wrap its encoder alone in Python, such as T5EncoderModel or "
            "model.get_encoder()"
        )
    try:
        return _Builder(model, input_shape, layout).build(spec)
    except Exception as error:  # whatever a network says to what it is tried on
        reason = " ".join(str(error).split()).rstrip(".")
        networks = [n for n, part in model.named_children() if isinstance(part, PreTrainedModel)]
        whole = len(networks) > 1 and f"Wrap one of the networks in it, .{' or .'.join(networks)}; "
        raise ValueError(
            f"can't wrap {type(model).__name__} by itself: {reason}. {whole or ''}Name parts that "
            "run one after another, stages=['…', …], or register an adapter: "
            "@multiexit.wrap.register(YourClass)"
        ) from error


def from_spec(spec: dict[str, Any]) -> RecordedBackbone:
    """Make the architecture of a saved spec, with random weights and without any download.

    Raises:
        ValueError: a class that transformers doesn't have.
    """
    with same.without_init():
        model = _make(spec)
    with buffers_kept(model):  # as when it was wrapped
        return from_instance(model, spec, spec.get("input_shape"))


def _make(spec: dict[str, Any]) -> Any:
    kind = getattr(transformers, spec["model"], None)
    if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
        raise schema.wrong("backbone.model", spec["model"], "the name of a model of transformers")
    config = configs.config_from_spec(spec["config"], spec.get("attention"))
    options = {"dtype": torch.float32, "attn_implementation": spec.get("attention")}
    return kind._from_config(config, **options)


class _Builder:
    """One model, while it is taken apart."""

    def __init__(self, model: Any, input_shape: Sequence[int] | None, layout: Any):
        self.model, self.own = parallel_lists.regrouped(model), model
        self.layout = layout
        self.config = model.config
        self.settings = model.config.to_dict()  # before a padding token is lent to it
        self.trial = trials.trial(self.model, input_shape)

    def build(self, spec: dict[str, Any] | None) -> RecordedBackbone:
        """The backbone: by its spec, or by what its forward does, and compared with that."""
        if spec is not None and any(p.is_meta for p in self.model.parameters()):
            arguments = describing.skeleton(self.model, spec)
            return self._made({**arguments, "classifier": self._described_head(spec)}, False)
        with trials.padding_known(self.config):
            batches = self.trial.batches()
            first_run = recording.record_layers(self.model, batches)
            if spec is not None:
                return self._backbone(first_run, spec, self._described_head(spec))
            logits = getattr(first_run.output, "logits", None)
            target = first_run.output[0] if logits is None else logits
            ending = endings.find_ending(self.model, first_run, target, batches[0].valid_BT)
            if ending is not None and self.trial.input_shape is None:
                ending = endings.with_real_tokens(ending)
            gives_logits = isinstance(logits, Tensor) and logits.ndim == 2
            classifies = gives_logits or task_heads.classifies(self.model)
            spec = self._spec(first_run, ending)
            backbone = self._backbone(first_run, spec, self._head(ending) if classifies else None)
            if classifies and backbone.classifier is None:
                warnings.warn(
                    f"the head of {type(self.own).__name__} can't be told from its forward: the "
                    "last exit starts anew, like the others",
                    stacklevel=user_level(),
                )
            one_length = self.trial.input_shape is not None
            comparing.check(backbone, self.model, first_run, batches, one_length)
            if self.model is not self.own:
                parallel_lists.check(self.own, self.model, batches)
        return backbone

    def _backbone(
        self, first_run: Recording, spec: dict[str, Any], head: NetworkHead | None
    ) -> RecordedBackbone:
        arguments = {
            **describing.parts(self.model, first_run, endings.described_ending(spec)),
            "feature_shapes": [tuple(shape) for shape in spec["chain"]["shapes"]],
            "layouts": spec["chain"]["layouts"],
            "pool": spec["pool"],
            "spec": spec,
            "classifier": head,
        }
        tokens = first_run.batch.length
        return self._made(arguments, fills_up=first_run.features[0].shape[1] != tokens)

    def _made(self, arguments: dict[str, Any], fills_up: bool) -> RecordedBackbone:
        trial = self.trial
        if isinstance(trial, RowTrial):
            example = {trial.name: torch.zeros(1, *trial.input_shape)}
            return ROWS[trial.name](**arguments, example=example)
        return RecordedText(
            trial.limits, trial.takes, fills_up, trial.length, **arguments, example={}
        )

    def _head(self, ending: Ending | None) -> NetworkHead | None:
        """Its own head, of rows or of tokens, if its end is one."""
        classes = self.config.num_labels
        labels = task_heads.labels(self.config, classes)
        head = None if ending is None else endings.classifier(self.model, ending, classes, labels)
        if head is not None:
            head.problem = task_heads.problem_of(self.model)
        return head

    def _described_head(self, spec: dict[str, Any]) -> NetworkHead | None:
        """The head that a spec says to be the model's own."""
        is_own = spec.get("classifier") in (True, TOKEN_PROBLEM)
        return self._head(endings.described_ending(spec)) if is_own else None

    def _pool(self, ending: Ending | None, layouts: Sequence[str]) -> str:
        """The network's own pooling of its last feature, or the one that suits its kind."""
        if layouts[-1] != "tokens":
            return "mean"
        known = next(tails.pooling(ending.names), None) if ending else None
        if known is not None:
            return known
        if isinstance(self.trial, TextTrial):
            return "last" if self._is_causal(self.trial) else "first"
        names = [name.rpartition(".")[2] for name, _ in self.model.named_parameters()]
        has_class = any(n in ("cls_token", "class_token", "class_embedding") for n in names)
        return "first" if has_class else "mean"

    def _is_causal(self, trial: TextTrial) -> bool:
        """Whether another last token leaves what the first one becomes as it was."""
        batch = trial.batch(1, 0, padded=False)
        if batch.length == 1:
            return False
        ids_BT = batch.inputs["input_ids"].clone()
        ids_BT[0, -1] = ids_BT[0, 0] if ids_BT[0, -1] != ids_BT[0, 0] else ids_BT[0, 1]
        with evaluating(self.model), torch.no_grad():
            one = self.model.base_model(**batch.inputs)[0]
            other = self.model.base_model(**{**batch.inputs, "input_ids": ids_BT})[0]
        return bool(torch.equal(one[0, 0], other[0, 0]))

    def _spec(self, first_run: Recording, ending: Ending | None) -> dict[str, Any]:
        """The description by which the model is made again, if that makes the same one."""
        # All that transformers hands from layer to layer in rank 3 is [B, T, H].
        has_tokens = self.layout is None and all(f.ndim == 3 for f in first_run.features)
        shapes, layouts = describing.shapes_and_layouts(
            self.model, first_run, "tokens" if has_tokens else self.layout
        )
        if isinstance(self.trial, TextTrial) and not has_tokens:
            raise ValueError("its layers hand on no vectors for tokens, [B, T, H]")
        if has_tokens:
            shapes = [(None, shape[-1]) for shape in shapes]
        spec = {
            "kind": "transformers",
            "model": type(self.own).__name__,
            "config": self.settings,
            "attention": self.config._attn_implementation,
            "pool": self._pool(ending, layouts),
            "chain": describing.describe_chain(first_run, shapes, layouts),
            **endings.describe(ending),
        }
        shape = self.trial.input_shape
        return spec if shape is None else {**spec, "input_shape": list(shape)}
