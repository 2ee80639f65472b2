"""An export's graphs, held to what the settings say of them."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from multiexit_runner.backends import KINDS, Open, Session
from multiexit_runner.folder import Folder, read_file
from multiexit_runner.inputs import Arrays
from multiexit_runner.protobuf import names_files
from multiexit_runner.settings import ROW_OUTPUTS


def open_sessions(folder: Folder, settings: dict[str, Any], open_session: Open) -> list[Session]:
    """A session for each segment.

    Args:
        folder: of the export.
        settings: of the export.
        open_session: from `multiexit_runner.backends.opener`.

    Raises:
        ValueError: a file that is no such graph, that names other files, or whose inputs and
            outputs aren't those of the settings; a provider that can't be used.
    """
    sessions = []
    for exit, segment in enumerate(settings["segments"]):
        path, data = folder.path / segment["file"], read_file(folder, segment["file"])
        try:
            if names_files(data):
                raise ValueError("it has weights in another file, and graphs hold all of theirs")
            session = open_session(data)
        except Exception as error:  # a backend's are of many kinds
            raise ValueError(f"{path} can't be run: {error}") from error
        _check(session, settings, exit, str(path))
        sessions.append(session)
    return sessions


def run(session: Any, segment: dict[str, Any], arrays: Arrays) -> Arrays:
    """Run a graph.

    Args:
        session: of the graph, with onnxruntime's `run`.
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
    except Exception as error:  # a backend's are of many kinds
        raise ValueError(f"{segment['file']} can't be run on these rows: {error}") from error
    return dict(zip(segment["outputs"], map(np.asarray, values), strict=True))


def graph_outputs(names: Iterable[str]) -> list[str]:
    """A graph's outputs as they are called in it, where they can't be called as its inputs are.

    Args:
        names: as the settings call them.
    """
    return [name if name in ROW_OUTPUTS else f"next.{name}" for name in names]


def _check(session: Session, settings: dict[str, Any], exit: int, path: str) -> None:
    """Refuse a graph with other inputs and outputs than the settings say."""
    segment = settings["segments"][exit]
    outputs = {name: (kind, shape) for name, kind, shape in session.outputs}
    for verb, actual, expected in (
        ("reads", sorted(session.inputs), sorted(segment["inputs"])),
        ("gives", [name for name, *_ in session.outputs], graph_outputs(segment["outputs"])),
    ):
        if actual != expected:
            raise ValueError(
                f"{path} {verb} {actual}, but export.json says {expected}: export again"
            )
    types = {name: spec["dtype"] for name, spec in settings["inputs"].items()}
    for name, number in settings["knobs"].items():
        types[f"policy.{name}"] = "int64" if isinstance(number, int) else "float32"
    for name, kind in session.inputs.items():
        if name in types and kind != f"tensor({KINDS[types[name]]})":
            raise ValueError(
                f"{path} reads {name} as {kind}, but export.json says {types[name]}: export again"
            )
    for name in ("logits", "answer"):
        if name not in outputs:
            continue
        kind, shape = outputs[name]
        rank = 3 if settings["problem"] == "token-classification" else 2
        fits = len(shape) == rank and shape[-1] == settings["num_classes"]
        if kind != "tensor(float)" or not fits:
            raise ValueError(
                f"{path} gives {name} as {kind} {shape}, but export.json says num_classes is "
                f"{settings['num_classes']}: export again"
            )
    if "stop" in outputs and outputs["stop"][0] != "tensor(bool)":
        raise ValueError(f"{path} gives stop as {outputs['stop'][0]}, not as bool: export again")
