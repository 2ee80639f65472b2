"""An export as a model repository of Triton Inference Server."""

import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from multiexit.files.paths import check_new
from multiexit.files.writing import whole_folder

MODEL = """import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from multiexit_runner.triton import TritonPythonModel  # noqa: E402, F401
"""
"""`model.py`: the package that it takes the class from lies beside it."""

TYPES = {
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "bool": "BOOL",
}
"""Types of arrays, as Triton calls them."""

Tensor = tuple[str, str, Sequence[int]]
"""A name, a type of Triton, and sizes, of which −1 is any."""


def check_name(folder: Path) -> None:
    """Refuse a folder whose name can't be that of a model.

    Raises:
        ValueError: characters other than letters, digits, `-`, `_` and `.`.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", folder.name):
        raise ValueError(
            f"{folder.name!r} is to be the name of a model of Triton, of letters, digits, -, _ and "
            "dots: name another folder"
        )


def triton_repository(export: Path, folder: Path) -> None:
    """Write an export as a model repository of Triton Inference Server.

    Each graph is a model of the backend `onnxruntime`, `NAME-exit-0` and so on. `NAME`, of the
    backend `python`, is the model to ask: it runs them one after the other by requests of its own
    and drops the rows that stopped in between, by `multiexit_runner`, which is copied beside it.
    For those who ask, a text's tokenizer lies there too; it cuts and pads as training did.

    Args:
        export: a folder that `multiexit.export` wrote.
        folder: of the repository, which must not exist yet; its name is `NAME`.

    Raises:
        ValueError: a folder that exists, or whose name won't do; a tokenizer that can't be read.
    """
    import multiexit_runner
    from multiexit_runner import tokenizing
    from multiexit_runner.folder import SETTINGS, read_file, read_folder
    from multiexit_runner.settings import parse_settings
    from multiexit_runner.triton import graph_name

    check_name(folder)
    check_new(folder)
    checked, name = read_folder(export), folder.name
    data = read_file(checked, SETTINGS)
    settings = parse_settings(data, str(export / SETTINGS))
    with whole_folder(folder) as new:
        for exit, segment in enumerate(settings["segments"]):
            graph = read_file(checked, segment["file"])
            place = _model(new, graph_name(name, exit), "onnxruntime", *_tensors(graph))
            (place / "model.onnx").write_bytes(graph)
        place = _model(new, name, "python", *_asked(settings))
        (place / "model.py").write_text(MODEL, encoding="utf-8")
        (place / SETTINGS).write_bytes(data)
        if tokenizing.TOKENIZER in checked.sums:
            reader = tokenizing.load(checked, settings["preprocessing"])
            (place / tokenizing.TOKENIZER).write_text(reader.to_str(), encoding="utf-8")
        shutil.copytree(
            Path(multiexit_runner.__file__).parent,
            place / "multiexit_runner",
            ignore=shutil.ignore_patterns("server", "__pycache__"),
        )


def _model(
    repository: Path, name: str, backend: str, inputs: Iterable[Tensor], outputs: Iterable[Tensor]
) -> Path:
    """The folder for a model's first version, beside its configuration."""
    lines = [f'name: "{name}"', f'backend: "{backend}"', "max_batch_size: 0"]
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for tensor, type, sizes in tensors:
            dims = ", ".join(map(str, sizes))
            lines.append(
                f'{kind} [ {{ name: "{tensor}" data_type: TYPE_{type} dims: [ {dims} ] }} ]'
            )
    if backend == "python":
        lines.append("instance_group [ { kind: KIND_CPU } ]")
    place = repository / name / "1"
    place.mkdir(parents=True)
    (place.parent / "config.pbtxt").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return place


def _asked(settings: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The inputs of the whole network, and its answers."""
    inputs: list[Tensor] = [
        (name, TYPES[spec["dtype"]], [-1 if isinstance(n, str) else n for n in spec["shape"]])
        for name, spec in settings["inputs"].items()
    ]
    tokens = [-1] if settings["problem"] == "token-classification" else []
    logits: Tensor = ("logits", "FP32", [-1, *tokens, settings["num_classes"]])
    return inputs, [logits, ("exit", "INT64", [-1])]


def _tensors(data: bytes) -> tuple[list[Tensor], list[Tensor]]:
    """A graph's inputs and outputs, as it says them."""
    import onnx

    graph = onnx.load_model_from_string(data).graph

    def tensor(value: Any) -> Tensor:
        kind = value.type.tensor_type
        name = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim]
        return value.name, TYPES[name], sizes

    return [*map(tensor, graph.input)], [*map(tensor, graph.output)]
