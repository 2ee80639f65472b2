"""Tiny random networks, one of each family that transformers offers, made when they are asked for.

`ZOO` is found from transformers' own mappings, so a new family is in it once it is installed. Each
entry is the family's classifier, or its bare encoder where it has none; a family that encodes and
decodes is in it if its encoder has a class of its own. `vision_zoo` has those of timm and
torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import partial

import torch
import transformers
from lively import perturb, settle
from torch import Tensor, nn
from transformers.models.auto import modeling_auto as auto
from zoo_sizes import FRAMES, IMAGE, MELS, VOCABULARY, small_config

Inputs = Callable[[int, int], dict[str, Tensor]]
"""A number of rows and a seed → what a network's `forward` takes, by name."""

TOKENS = 12
"""The length of the longest texts."""

ONE_LENGTH = {
    f"text/{name}"
    for name in ("convbert", "fnet", "nystromformer", "sam3_lite_text_text_model", "yoso")
}
"""What reads the padding too, and takes texts filled up to one length."""

LEFT_OUT = {
    "cohere2_vision": "reads text beside images",
    "conditional_detr": "detects with a timm backbone",
    "dab-detr": "detects with a timm backbone",
    "deformable_detr": "detects with a timm backbone",
    "depth_pro": "estimates depth with three encoders",
    "detr": "detects with a timm backbone",
    "dinat": "needs the package natten",
    "edgetam_vision_model": "has a timm trunk",
    "layoutlmv2": "needs the package detectron2",
    "llama4": "has a vision tower whose type is not in the mapping",
    "mllama": "has a vision tower whose type is not in the mapping",
    "molmo2_text": "is the decoder of another model",
    "shieldgemma2": "reads text beside images",
    "table-transformer": "detects with a timm backbone",
    "timm_backbone": "is a timm network",
    "timm_wrapper": "is a timm network",
}
"""Model type → why it is not in the zoo."""


@dataclass(frozen=True)
class Entry:
    """A network that can be made, and inputs for it.

    Attributes:
        group: `"text"`, `"decoder"`, `"image"`, `"video"` or `"audio"`.
        type: transformers' model type.
        make: Makes the network, in evaluation mode, always with the same weights.
        inputs: Makes what its `forward` takes.
    """

    group: str
    type: str
    make: Callable[[], nn.Module]
    inputs: Inputs


def _made(model_type: str, name: str, inputs: Inputs) -> nn.Module:
    """The network of this class, seeded; the caller's random numbers go on as they would have."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = getattr(transformers, name)(small_config(model_type)).eval()
        perturb(network)
        _blank_padding(network)
        settle(network, **inputs(8, 0))
    return network


def _blank_padding(network: nn.Module) -> None:
    """Padding's embedding is zero, as in networks that were trained."""
    for part in network.modules():
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            part.weight.data[part.padding_idx] = 0


def _drawn(rows: int, seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    """Normal numbers: of each row's shape by name."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, *shape, generator=generator) for name, shape in shapes.items()}


def _text(rows: int, seed: int) -> dict[str, Tensor]:
    """Tokens, with two of three rows padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (rows, TOKENS), generator=generator)
    lengths = TOKENS - 3 * (torch.arange(rows) % 3)
    mask = (torch.arange(TOKENS) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def _text_behind_padding(rows: int, seed: int) -> dict[str, Tensor]:
    """Tokens, with two of three rows padded on the left."""
    return {name: value.flip(1) for name, value in _text(rows, seed).items()}


def _colours(rows: int, seed: int) -> dict[str, Tensor]:
    """Pixels as tokens."""
    return {"input_ids": _text(rows, seed)["input_ids"]}


def _patches(rows: int, seed: int) -> dict[str, Tensor]:
    """Images cut into four by four patches."""
    return _drawn(rows, seed, pixel_values=(16, 3 * 8 * 8)) | {
        "pixel_attention_mask": torch.ones(rows, 16, dtype=torch.long),
        "spatial_shapes": torch.full((rows, 2), 4),
    }


_images = partial(_drawn, pixel_values=(3, IMAGE, IMAGE))
_large_images = partial(_drawn, pixel_values=(3, 64, 64))
_videos = partial(_drawn, pixel_values=(FRAMES, 3, IMAGE, IMAGE))
_named_videos = partial(_drawn, pixel_values_videos=(FRAMES, 3, IMAGE, IMAGE))
_waves = partial(_drawn, input_values=(640,))

_INPUTS = {"text": _text, "decoder": _text, "image": _images, "video": _videos, "audio": _waves}
_INPUTS_OF_TYPE = {
    "audio-spectrogram-transformer": partial(_drawn, input_values=(64, MELS)),
    "imagegpt": _colours,
    "levit": _large_images,
    "mobilevitv2": _large_images,
    "siglip2": _patches,
    "siglip2_vision_model": _patches,
    "videoprism_vision_model": _named_videos,
    "vit_mae": partial(_drawn, pixel_values=(3, IMAGE, IMAGE), noise=(16,)),
    "vjepa2": _named_videos,
    "wav2vec2-bert": partial(_drawn, input_features=(24, MELS)),
    "whisper": partial(_drawn, input_features=(MELS, 64)),
    "xlnet": _text_behind_padding,
}


def _of(task: str) -> dict[str, str]:
    """Model type → the class for a task, the first where there are more."""
    mapping: Mapping = getattr(auto, f"MODEL_{task}MAPPING_NAMES")
    return {key: name if isinstance(name, str) else name[0] for key, name in mapping.items()}


def _found() -> dict[str, dict[str, str]]:
    """Group → model type → class."""
    bare, causal, pairs = _of(""), _of("FOR_CAUSAL_LM_"), _of("FOR_SEQ_TO_SEQ_CAUSAL_LM_")
    masked, classifiers = _of("FOR_MASKED_LM_"), _of("FOR_SEQUENCE_CLASSIFICATION_")
    text = masked | _of("FOR_TEXT_ENCODING_") | _ending(bare, "_text_model") | classifiers
    # Encoders that can be made to decode are in the mapping of causal models, too.
    decoders = causal.keys() - masked.keys() - {"xlnet"} | {"mistral4"}
    halves = {key: bare.get(key, "").removesuffix("Model") + "EncoderModel" for key in pairs}
    exported = set(dir(transformers))
    images = _ending(bare, "_vision_model") | _of("FOR_IMAGE_") | _of("FOR_IMAGE_CLASSIFICATION_")
    videos = _of("FOR_VIDEO_CLASSIFICATION_")
    return {
        "text": _only(text | bare | classifiers, text.keys() - decoders - pairs.keys())
        | {key: name for key, name in halves.items() if name in exported},
        "decoder": _only(classifiers, (classifiers.keys() & decoders) - pairs.keys()),
        "image": _only(images, images.keys() - videos.keys()),
        "video": videos,
        "audio": _of("FOR_AUDIO_CLASSIFICATION_"),
    }


def _ending(classes: dict[str, str], end: str) -> dict[str, str]:
    """Those whose type ends so."""
    return {key: name for key, name in classes.items() if key.endswith(end)}


def _only(classes: dict[str, str], types: Set[str]) -> dict[str, str]:
    """Those of these types."""
    return {key: name for key, name in classes.items() if key in types}


def _entry(group: str, model_type: str, name: str) -> Entry:
    inputs = _INPUTS_OF_TYPE.get(model_type, _INPUTS[group])
    return Entry(group, model_type, partial(_made, model_type, name, inputs), inputs)


ZOO = {
    f"{group}/{key}": _entry(group, key, name)
    for group, found in _found().items()
    for key, name in sorted(found.items())
    if key not in LEFT_OUT
}
"""`group/type` → its entry."""
