"""How a network's images are read, by what comes with its weights.

Letters: C channels, H height, W width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from multiexit.files.unreadable import one_line
from multiexit_runner import pictures


class OwnImages(NamedTuple):
    """What a library says of a network's images, and its own way to read them.

    Args:
        what: to call it in messages.
        read: from an image of Pillow, RGB, to [C, H, W].
        mean, std: per channel, of pixels in 0..1.
        interpolation: a key of `multiexit_runner.pictures.INTERPOLATIONS`.
        resize: what the size before the crop may be; the one is taken that gives the same pixels.
        crop: how an odd rest is halved, as in `multiexit.data.image_files`.
    """

    what: str
    read: Callable[[Any], Any]
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: str
    resize: Sequence[int | list[int]]
    crop: str = "round"


def described(own: OwnImages) -> tuple[dict[str, Any], float]:
    """The description that comes nearest to a library's own way.

    Returns:
        It, and by how many of 255 levels a pixel differs at most, on pictures of noise; where no
        description will do, its shape alone, and infinity.

    Raises:
        ValueError: images of several sizes.
    """
    images = _pictures()
    try:
        theirs = [np.asarray(own.read(image), np.float32) for image in images]
    except Exception as error:  # whatever a library's own code says
        raise ValueError(f"{own.what} can't read a picture: {one_line(error)}") from error
    shapes = {pixels.shape for pixels in theirs}
    shape = list(theirs[0].shape)
    if len(shapes) > 1 or len(shape) != 3:
        raise ValueError(
            f"{own.what} gives images of several sizes, {sorted(shapes)[:2]}, and exits need one: "
            "say it, --image-size and --normalisation imagenet (in Python, leave preparation out)"
        )
    std_C11 = np.asarray(own.std, np.float32)[:, None, None]
    found = []
    for resize in own.resize:
        how = {
            **{"shape": shape, "resize": resize, "interpolation": own.interpolation},
            **{"antialias": True, "crop": own.crop},
            **{"mean": [float(x) for x in own.mean], "std": [float(x) for x in own.std]},
        }
        if not _is_readable(how):
            continue
        ours = [pictures.read(image, how) for image in images]
        apart = max(
            float(np.abs((a - b) * std_C11).max()) * 255 for a, b in zip(theirs, ours, strict=True)
        )
        found.append((apart, len(found), how))
    if not found:
        return {"shape": shape}, float("inf")
    apart, _, how = min(found)
    return how, apart


def _pictures() -> list[Any]:
    """Pictures wide and high, larger and smaller than networks read, of noise."""
    from PIL import Image

    draw = np.random.default_rng(0)
    sizes = ((301, 517), (640, 433), (90, 67), (255, 256))
    return [Image.fromarray(draw.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]


def _is_readable(how: Mapping[str, Any]) -> bool:
    sides = how["resize"] if isinstance(how["resize"], list) else [how["resize"]] * 2
    try:
        pictures.check(how)
    except ValueError:
        return False
    return all(side >= least for side, least in zip(sides, how["shape"][1:], strict=True))
