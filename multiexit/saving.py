"""A trained model as a folder: safetensors for weights, JSON for the rest, nothing pickled."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model
from torch import nn

from multiexit import policies
from multiexit.backbones import Backbone, rebuild
from multiexit.files import write, write_all
from multiexit.latency import Latency

if TYPE_CHECKING:
    from multiexit.model import MultiExitModel

FORMAT = 1
WEIGHTS = "model.safetensors"
SETTINGS = "multiexit.json"
KEYS = ("backbone", "num_classes", "exits", "head", "pool", "labels", "preprocessing", "policy")


def save(model: "MultiExitModel", folder: Path, tokenizer: Any = None) -> None:
    """See `MultiExitModel.save_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = _described(model)
    write_all(
        {
            folder / WEIGHTS: lambda path: save_model(model, str(path)),
            folder / SETTINGS: lambda path: path.write_text(text),
        }
    )
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def save_settings(model: "MultiExitModel", folder: Path) -> None:
    """Write anew what goes with the weights, such as the policy; the weights stay as they are."""
    text = _described(model)
    write(folder / SETTINGS, lambda path: path.write_text(text))


def _described(model: "MultiExitModel") -> str:
    """Everything but the weights, as JSON."""
    settings = {
        "format": FORMAT,
        "backbone": model.backbone.spec,
        "num_classes": model.num_classes,
        "exits": list(model.exits),
        "head": model.head if isinstance(model.head, str) else None,
        "pool": model.pool,
        "labels": model.labels,
        "preprocessing": model.preprocessing,
        "policy": None if model.policy is None else policies.to_json(model.policy),
        "latency": None if model.latency is None else model.latency.to_json(),
    }
    return json.dumps(settings, indent=2)


def load(
    cls: "type[MultiExitModel]",
    folder: str | Path,
    backbone: Backbone | None = None,
    head: Callable[[Any, int], nn.Module] | None = None,
    kinds: Sequence[type[policies.ExitPolicy]] = (),
) -> "MultiExitModel":
    """See `MultiExitModel.from_pretrained`."""
    path = _local(folder)
    settings = _settings(path / SETTINGS)
    if backbone is None:
        if settings["backbone"] is None:
            raise ValueError(
                f"the backbone in {path} is one of your own: pass backbone=, wrapped as before"
            )
        backbone = rebuild(settings["backbone"])
    if settings["head"] is None and head is None:
        raise ValueError(f"the heads in {path} are of your own: pass head=, the same function")
    model = cls(
        backbone,
        settings["num_classes"],
        settings["exits"],
        head or settings["head"],
        settings["pool"],
        settings["labels"],
    )
    model.preprocessing = settings["preprocessing"]
    if settings["policy"] is not None:
        model.policy = policies.from_json(settings["policy"], kinds)
    if settings.get("latency") is not None:
        model.latency = Latency.from_json(settings["latency"])
    load_weights(model, path / WEIGHTS)
    return model.eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a model from a safetensors file.

    Raises:
        ValueError: no file, one cut short, or tensors missing, left over or of another shape.
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}")
    try:
        load_model(model, path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short: {error}") from error
    except RuntimeError as error:
        names = set(load_file(path))
        missing = sorted(set(model.state_dict()) - names)
        raise ValueError(
            f"{path} doesn't fit this model (tensors missing from the file, shared ones counted: "
            f"{missing[:5]}): {error}"
        ) from error


def _local(folder: str | Path) -> Path:
    path = Path(folder)
    if path.is_dir():
        return path
    try:
        return Path(snapshot_download(str(folder)))
    except (OSError, HFValidationError) as error:
        raise ValueError(
            f"no folder {str(folder)!r}, and no such repository on the hub: {error}"
        ) from error


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no {path.name} in {path.parent}: not a saved MultiExitModel")
    try:
        settings = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged or cut short: {error}") from error
    version = settings.get("format") if isinstance(settings, dict) else None
    if version != FORMAT:
        raise ValueError(
            f"{path} has format {version!r}; this version of multiexit reads {FORMAT}: install "
            "the version that wrote it"
        )
    missing = [key for key in KEYS if key not in settings]
    if missing:
        raise ValueError(f"{path} is damaged: it lacks {missing}")
    return settings
