"""Graphs as onnxruntime's sessions, held to what the settings say of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from multiexit_runner.folder import Folder, read_file
from multiexit_runner.inputs import Arrays
from multiexit_runner.protobuf import names_files
from multiexit_runner.settings import ROW_OUTPUTS

if TYPE_CHECKING:  # the readers of streams beside it need none
    from onnxruntime import InferenceSession

CPU = "CPUExecutionProvider"
KINDS = {"int64": "int64", "int32": "int32", "float32": "float", "bool": "bool"}
"""Types of arrays, as onnxruntime calls them."""


def check_providers(providers: Sequence[Any] | None) -> list[Any]:
    """The providers to use.

    Raises:
        ValueError: what is no list of names, each alone or with a dict of options, or a provider
            that isn't there.
    """
    if providers is None:
        return [CPU]
    import onnxruntime as ort

    listed = list(providers) if isinstance(providers, list | tuple) else []
    names = [each[0] if isinstance(each, tuple) and each else each for each in listed]
    available = ort.get_available_providers()
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"providers must be a list of names such as ['{CPU}'], each alone or as a pair (name, "
            f"options); got {providers!r}"
        )
    missing = [name for name in names if name not in available]
    if missing:
        raise ValueError(
            f"no provider {missing[0]!r} in this onnxruntime; it has {', '.join(available)}"
        )
    return listed


def open_sessions(
    folder: Folder, settings: dict[str, Any], threads: int | None, providers: list[Any]
) -> "list[InferenceSession]":
    """A session for each segment.

    Args:
        folder: of the export.
        settings: of the export.
        threads: of one call; None is as many as there are cores.
        providers: onnxruntime's, checked.

    Raises:
        ValueError: a file that is no such graph, that names other files, or whose inputs and
            outputs aren't those of the settings; a provider that can't be used.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # what goes wrong is raised
    # Each session has its own threads: those of one must not spin while the next one works.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    sessions = []
    for exit, segment in enumerate(settings["segments"]):
        path, data = folder.path / segment["file"], read_file(folder, segment["file"])
        try:
            if names_files(data):
                raise ValueError("it has weights in another file, and graphs hold all of theirs")
            session = ort.InferenceSession(data, options, providers)
        except Exception as error:  # onnxruntime's are of many kinds
            raise ValueError(f"{path} can't be run: {error}") from error
        names = [each[0] if isinstance(each, tuple) else each for each in providers]
        unused = [name for name in names if name not in session.get_providers()]
        if unused:
            raise ValueError(
                f"{unused[0]} is in this onnxruntime but can't be used on this machine (are its "
                "drivers and libraries there?): name other providers"
            )
        _check_session(session, settings, exit, str(path))
        sessions.append(session)
    return sessions


def run(session: "InferenceSession", segment: dict[str, Any], arrays: Arrays) -> Arrays:
    """Run a graph.

    Args:
        session: of the graph.
        segment: its inputs and outputs in the settings.
        arrays: by name, those that it reads among them.

    Returns:
        What it gives, by the settings' names.

    Raises:
        ValueError: whatever goes wrong in it.
    """
    feed = {name: arrays[name] for name in segment["inputs"]}
    try:
        values = session.run(None, feed)
    except Exception as error:  # onnxruntime's are of many kinds
        raise ValueError(f"{segment['file']} can't be run on these rows: {error}") from error
    return dict(zip(segment["outputs"], map(np.asarray, values), strict=True))


def graph_outputs(segment: dict[str, Any]) -> list[str]:
    """A graph's outputs as they are called in it, in the order of the settings."""
    return [name if name in ROW_OUTPUTS else f"next.{name}" for name in segment["outputs"]]


def _check_session(session: Any, settings: dict[str, Any], exit: int, path: str) -> None:
    """Refuse a graph with other inputs and outputs than the settings say."""
    segment = settings["segments"][exit]
    inputs = {each.name: each.type for each in session.get_inputs()}
    outputs = {each.name: each for each in session.get_outputs()}
    for verb, actual, expected in (
        ("reads", sorted(inputs), sorted(segment["inputs"])),
        ("gives", list(outputs), graph_outputs(segment)),
    ):
        if actual != expected:
            raise ValueError(
                f"{path} {verb} {actual}, but export.json says {expected}: export again"
            )
    types = {name: spec["dtype"] for name, spec in settings["inputs"].items()}
    for name, number in settings["knobs"].items():
        types[f"policy.{name}"] = "int64" if isinstance(number, int) else "float32"
    for name, kind in inputs.items():
        if name in types and kind != f"tensor({KINDS[types[name]]})":
            raise ValueError(
                f"{path} reads {name} as {kind}, but export.json says {types[name]}: export again"
            )
    for name in ("logits", "answer"):
        if name not in outputs:
            continue
        kind, shape = outputs[name].type, outputs[name].shape
        rank = 3 if settings["problem"] == "token-classification" else 2
        fits = len(shape) == rank and shape[-1] == settings["num_classes"]
        if kind != "tensor(float)" or not fits:
            raise ValueError(
                f"{path} gives {name} as {kind} {shape}, but export.json says num_classes is "
                f"{settings['num_classes']}: export again"
            )
    if "stop" in outputs and outputs["stop"].type != "tensor(bool)":
        raise ValueError(f"{path} gives stop as {outputs['stop'].type}, not as bool: export again")
