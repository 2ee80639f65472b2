"""Whether an ONNX graph's bytes name other files: read field by field, no library needed."""

from collections.abc import Iterator

PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""The fields of each message of onnx.proto that tensors can lie in."""

EXTERNAL, LOCATION = 13, 14
"""Fields of a tensor: where its data lies, and that it lies there."""

DEEPEST = 64


def names_files(data: bytes) -> bool:
    """Whether a tensor of a graph has its data in another file.

    Raises:
        ValueError: bytes that are no such graph.
    """
    return _refers_to_file(memoryview(data), "model", 0)


def _refers_to_file(data: memoryview, kind: str, depth: int) -> bool:
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    for field, value in _fields(data):
        if kind == "tensor":
            if field == EXTERNAL or (field == LOCATION and value != 0):
                return True
        elif field in PARTS[kind]:
            if isinstance(value, int):
                raise ValueError("it is no ONNX graph")
            if _refers_to_file(value, PARTS[kind][field], depth + 1):
                return True
    return False


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """A message's fields: numbers as such, everything else as bytes."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        if tag & 7 == 0:
            value, position = _varint(data, position)
            yield tag >> 3, value
            continue
        if tag & 7 == 2:
            size, position = _varint(data, position)
        elif tag & 7 in (1, 5):
            size = 8 if tag & 7 == 1 else 4
        else:
            raise ValueError("it is no ONNX graph")
        if size > len(data) - position:
            raise ValueError("it is cut off")
        yield tag >> 3, data[position : position + size]
        position += size


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("it is cut off, or no ONNX graph")
        byte = data[position]
        number |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return number, position
