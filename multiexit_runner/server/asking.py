"""A request's body, and its inputs made ready for the network."""

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from multiexit_runner import pictures
from multiexit_runner.answering import Encoded
from multiexit_runner.server.options import Options
from multiexit_runner.server.served import Served


class Ask(BaseModel):
    """A request: one input or several, and how long to spend on them."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Any = Field(
        description='A text, {"text": …, "text_pair": …}, {"image": "base64 of a file"}, or a list '
        "of them",
        examples=["a fine film", ["a fine film", "a dull one"]],
    )
    policy: str | None = Field(None, description="In place of the service's own: max-prob=0.9")
    threshold: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="In place of the policy's threshold"
    )
    max_exit: Annotated[int, Field(ge=0)] | None = Field(
        None, description="The exit, counted from 0, where rows leave at the latest"
    )
    budget_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Rows leave with the answer that they have after so many milliseconds"
    )
    top_k: Annotated[int, Field(ge=1)] | None = Field(None, description="Classes in `scores`")


def read_inputs(served: Served, options: Options, items: Sequence[Any]) -> list[Encoded]:
    """Inputs as the network takes them.

    Args:
        served: whose inputs they are.
        options: with the operator's limits.
        items: as they came.

    Raises:
        ValueError: one that can't be read or is too large, by its place.
    """
    encoded: list[Encoded] = []
    if served.kind == "image":
        items = [_image_bytes(item, f"inputs[{place}]") for place, item in enumerate(items)]
        _check_pixels(items, options.max_pixels)
    for place, item in enumerate(items):
        where = f"inputs[{place}]"
        if served.kind != "image" and (size := characters(item)) > options.max_characters:
            raise ValueError(
                f"{where} has {size} characters; this service takes at most "
                f"{options.max_characters}"
            )
        encoded.append(served.encode(item, place))
        try:
            served.network.length(encoded[-1].inputs)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return encoded


def characters(item: Any) -> int:
    """The length of an input's texts."""
    if isinstance(item, Mapping):
        return sum(map(characters, item.values()))
    if isinstance(item, list):
        return sum(map(characters, item))
    return len(item) if isinstance(item, str) else 0


def _image_bytes(item: Any, where: str) -> bytes:
    """The bytes of an image's file."""
    if not isinstance(item, Mapping) or {*item} != {"image"} or not isinstance(item["image"], str):
        raise ValueError(f'{where} must be {{"image": "the base64 of an image file"}}')
    try:
        return base64.b64decode(item["image"], validate=True)
    except ValueError as error:  # of characters beyond ASCII too
        raise ValueError(f"{where}.image is no base64: {error}") from error


def _check_pixels(images: Sequence[bytes], most: int) -> None:
    """Refuse images of more pixels, each or all together: a small file may hold very many."""
    total = 0
    for place, data in enumerate(images):
        try:
            pixels = pictures.count(data)
        except ValueError as error:
            raise ValueError(f"inputs[{place}]: {error}") from error
        if pixels > most:
            raise ValueError(
                f"inputs[{place}] has {pixels} pixels; this service takes at most {most}"
            )
        total += pixels
    if total > most:
        raise ValueError(
            f"these images have {total} pixels; this service takes at most {most} in a request: "
            "send fewer at once"
        )
