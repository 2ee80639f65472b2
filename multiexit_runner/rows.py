"""The rows that a folder keeps, with the answers they must get.

`check.npz` holds `input.NAME` for each input, `float` (the model's logits) and `exported` (what the
graphs gave where they were made), float32 [M, B, C].

Letters: M exits, B batch rows, C classes.
"""

import io
import zipfile
from typing import Any, NamedTuple

import numpy as np

from multiexit_runner.inputs import Arrays

SHARE = 0.01
"""How far logits may be apart from those exported, times the largest (at least 1): half precision
may, an overflow may not."""


class Rows(NamedTuple):
    """Inputs by name, and the logits of all exits."""

    inputs: Arrays
    float_MBC: np.ndarray
    exported_MBC: np.ndarray

    @property
    def allowed(self) -> float:
        """How far another machine's logits may be from those exported: rounding, or as far as two
        such exports may be apart, of which each is as far from the model as this one."""
        rounding = SHARE * max(1.0, float(np.abs(self.float_MBC).max()))
        return max(rounding, 2 * float(np.abs(self.exported_MBC - self.float_MBC).max()))


def to_bytes(rows: Rows) -> bytes:
    """The file's content."""
    named = {f"input.{name}": array for name, array in rows.inputs.items()}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, float=rows.float_MBC, exported=rows.exported_MBC, **named)
    return file.getvalue()


def from_bytes(data: bytes, settings: dict[str, Any], where: str) -> Rows:
    """The rows in a file's bytes.

    Args:
        data: the bytes.
        settings: of the export.
        where: what to call the file in the message.

    Raises:
        ValueError: what is no such file, or has other arrays than these settings ask for.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("it is compressed")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        rows = Rows(
            {name: arrays.pop(f"input.{name}") for name in settings["inputs"]},
            arrays.pop("float"),
            arrays.pop("exported"),
        )
    except Exception as error:  # numpy and zipfile raise all kinds for damaged files
        raise ValueError(f"{where} holds no rows to check: {error!r}") from error
    count = len(next(iter(rows.inputs.values()))) if rows.inputs else 0
    outputs = (settings["num_classes"],)
    if settings["problem"] == "token-classification" and count:
        outputs = (*next(iter(rows.inputs.values())).shape[1:2], *outputs)
    shape = (len(settings["segments"]), count, *outputs)
    for name, array in (("float", rows.float_MBC), ("exported", rows.exported_MBC)):
        if not count or array.shape != shape or array.dtype != np.float32:
            raise ValueError(
                f"{where}: {name} is {array.dtype} {array.shape}; it must be float32 {shape}, with "
                "at least one row"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{where}: {name} must be finite")
    return rows
