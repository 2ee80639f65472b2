"""Files written aside and renamed, so that nothing is ever half there."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

CACHE = Path("~/.cache/multiexit")
"""Where data lies that can be made or fetched again."""


def write_all(writers: dict[Path, Callable[[Path], Any]]) -> None:
    """Write each file beside its place, then rename them all: all or nothing.

    Raises:
        OSError: the disk is full or can't be written; what was there before stays.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in writers}
    try:
        for path, writer in writers.items():
            writer(temporary[path])
        for path, written in temporary.items():
            os.replace(written, path)
    except SafetensorError as error:  # its own name for a failed write
        raise OSError(f"could not write {[str(path) for path in writers]}: {error}") from error
    finally:
        for written in temporary.values():
            written.unlink(missing_ok=True)


def write(path: Path, writer: Callable[[Path], Any]) -> None:
    """`write_all` for one file."""
    write_all({path: writer})


def write_json(path: Path, data: Any) -> None:
    """Write plain data as a JSON file."""
    text = json.dumps(data, indent=1)
    write(path, lambda target: target.write_text(text))


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as a safetensors file."""
    write(path, lambda target: save_file(tensors, target))
