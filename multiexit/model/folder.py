"""A trained model as a folder: safetensors for weights, JSON for the rest, nothing pickled."""

import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import nn

from multiexit.arguments import IN_PYTHON
from multiexit.backbones import Backbone, adapters, kinds, rebuild, specs
from multiexit.backbones.same import class_of, rebuild_difference
from multiexit.files import weights
from multiexit.files.names import MODEL
from multiexit.files.paths import nearest, user_path
from multiexit.files.unreadable import reason
from multiexit.files.writing import write, write_all
from multiexit.model import heads
from multiexit.model.settings import read_settings, settings_text
from multiexit_runner.user_line import user_level

WEIGHTS = "model.safetensors"
SETTINGS = "multiexit.json"
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""The files that are taken from a repository of the hub."""


def of_run(run: Path) -> Path:
    """The folder of the model in a run's folder, or that folder itself."""
    return run / MODEL if (run / MODEL / SETTINGS).exists() else run


def save_folder(
    folder: Path, model: nn.Module, settings: dict[str, Any], tokenizer: Any = None
) -> None:
    """Write a model's folder.

    Args:
        folder: made where it isn't there.
        model: whose weights they are.
        settings: everything else, as `MultiExitModel.settings` gives it.
        tokenizer: saved beside them.

    Raises:
        ValueError: settings that `multiexit.model.settings.read_settings` would refuse; weights
            that are no tensors, or quantised ones; a file where the folder is to be.
        OSError: the folder can't be written.
    """
    if not (place := nearest(folder)).is_dir():
        raise ValueError(f"a model is saved in a folder, and {place} is none")
    weights.check_plain(model)
    mark = weights.mark_of(model)
    text = settings_text({**settings, "weights": mark})
    writers: dict[Path, Callable[[Path], Any]] = {
        folder / WEIGHTS: lambda path: weights.save_weights(model, path, mark),
        folder / SETTINGS: lambda path: path.write_text(text, encoding="utf-8"),
    }
    with tempfile.TemporaryDirectory() as made:
        if tokenizer is not None:
            save_tokenizer(tokenizer, Path(made))
        for file in Path(made).rglob("*"):
            if file.is_file():
                writers[folder / file.relative_to(made)] = partial(shutil.copyfile, file)
        for path in writers:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_all(writers)


def save_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings anew, such as the policy; the weights stay as they are."""
    mark = weights.mark(folder / WEIGHTS, folder)
    text = settings_text(settings if mark is None else {**settings, "weights": mark})
    write(folder / SETTINGS, lambda path: path.write_text(text, encoding="utf-8"))


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer's files.

    Raises:
        OSError: the disk is full or can't be written.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:  # as which the library's core says everything
            raise
        raise OSError(f"could not write the tokenizer to {folder}: {error}") from error


def backbone_spec(backbone: Backbone) -> dict[str, Any] | None:
    """The description that makes the backbone again; where there is none, a warning says so."""
    why = backbone.undescribed or "it is one of your own, or of parts that can't be written down"
    spec = adapters.described(backbone)
    if spec is not None and kinds.describable(spec):
        why = rebuild_difference(backbone, rebuild)
        if not why:
            return spec
    hint = ""
    if spec is not None and adapters.layers(backbone):
        hint = ". One plain LoRA adapter could be saved; multiexit.merge_adapters takes any away"
    warnings.warn(
        f"the backbone can't be made again from its description ({why}), so none is saved: whoever "
        f"loads the model must pass backbone=, wrapped as before{hint}",
        stacklevel=user_level(),
    )
    return None


def read_folder(
    folder: str | Path,
    backbone: Backbone | None,
    head: Any,
    revision: str | None = None,
    token: str | None = None,
) -> tuple[Path, dict[str, Any]]:
    """A model's folder on this machine, and its settings, which fit the weights beside them.

    Args:
        folder: a local one, or a repository of the hub.
        backbone, head: what the user passes in place of what is described, or None.
        revision, token: of the repository.

    Raises:
        ValueError: no such folder; settings that say nothing of the backbone or the heads where
            the user passes none; settings of which the weights aren't.
    """
    path = local_folder(folder, revision, token)
    settings = read_settings(path / SETTINGS)
    if backbone is None and settings["backbone"] is None:
        raise ValueError(
            f"the backbone in {path} is one of your own: give from_pretrained the same backbone, "
            f"wrapped as before, {IN_PYTHON}"
        )
    if settings["head"] is None and head is None:
        raise ValueError(
            f"the heads in {path} are of your own: give from_pretrained the same function as head, "
            f"{IN_PYTHON}"
        )
    _check_weights(settings, path, backbone, head)
    saved = settings.get("backbone_class")
    given = None if backbone is None else class_of(backbone).__qualname__
    if None not in (saved, given) and saved != given:
        warnings.warn(
            f"the backbone in {path} was a {saved}, and a {given} is given: it takes the saved "
            "weights, and may compute something else with them",
            stacklevel=user_level(),
        )
    return path, settings


def _check_weights(
    settings: dict[str, Any], path: Path, backbone: Backbone | None, head: Any
) -> None:
    """Refuse settings of which the weights aren't, before anything of the size they say is made.

    The network is made without memory (on the meta device), except for what the user passes.
    """
    stored, mark = weights.header(path / WEIGHTS, path), weights.mark(path / WEIGHTS, path)
    if mark is not None and mark != settings.get("weights"):
        raise ValueError(
            f"{WEIGHTS} and {SETTINGS} in {path} aren't of one model: a save that was to replace "
            "both was cut off between them, or one was copied alone; save the model again"
        )
    expected = {"temperature_M": torch.empty(len(settings["exits"]))}
    parts: dict[str, nn.Module] = {}
    try:
        with torch.device("meta"), weights.bounded(stored), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trunk = rebuild(settings["backbone"]) if backbone is None else backbone
            parts["backbone"] = trunk
            numbers = sum(value.numel() for value in trunk.example_inputs().values())
            if backbone is None and numbers > specs.MOST_INPUTS:
                raise ValueError(f"an input row of {numbers:,} numbers, over {specs.MOST_INPUTS:,}")
            if settings["exits"][-1] >= trunk.num_stages:
                raise ValueError(
                    f"exits end at {settings['exits'][-1]} of {trunk.num_stages} stages"
                )
            if head is None:
                parts["heads"] = heads.build(
                    settings["head"],
                    settings["pool"],
                    trunk,
                    settings["exits"],
                    settings["num_classes"],
                    settings.get("problem"),
                )
    except Exception as error:  # the libraries raise all kinds for numbers that make no network
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = f"there is no {reason}" if isinstance(error, KeyError) else reason
        raise ValueError(
            f"{path / SETTINGS}: this is no network that can be made: {reason[:1000]}"
        ) from error
    for name, part in parts.items():
        state = part.state_dict(keep_vars=True)
        expected |= {f"{name}.{inner}": tensor for inner, tensor in state.items()}
    if head is not None:  # what the user's function makes isn't known yet
        stored = {name: stored[name] for name in stored if name in expected}
        expected = {name: expected[name] for name in stored}
    weights.check_fit(expected, stored, path / WEIGHTS)


def local_folder(folder: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """A folder on this machine: a local one, or the snapshot of a repository of the hub.

    Args:
        folder: its path, or the repository's name.
        revision, token: of the repository.

    Raises:
        ValueError: neither a folder nor a repository that can be had; a revision of a local one.
    """
    path = user_path(folder)
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"{folder} is a folder here, which has no revision {revision!r}")
        return path
    try:
        return Path(
            snapshot_download(
                str(folder), revision=revision, token=token, allow_patterns=list(HUB_FILES)
            )
        )
    except (OSError, HFValidationError) as error:
        raise ValueError(f"no model {str(folder)!r}: {reason(folder, error)}") from error
