"""Pictures as a network was trained on them, by Pillow: `multiexit.data.image_files` too.

The description that says how is in that module; what it says is checked here in short.

Letters: C channels, H height, W width.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("PNG", "JPEG", "MPO", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
"""The formats that are read, by Pillow's names. Others are refused: some of them start programs."""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")

CROPS = ("round", "floor")
"""How the odd rest that a crop leaves is halved: to the even number, or down."""

LARGEST = 178_956_970
"""Pixels of the largest image, as many as Pillow opens by default."""


Change = Callable[[Any], Any]
"""From an image of Pillow to another one."""


def read(source: Any, how: Mapping[str, Any]) -> np.ndarray:
    """An image as the network reads it, float32 [C, H, W].

    Args:
        source: as for `pixels`.
        how: the description.

    Raises:
        ValueError: as `pixels`.
    """
    mean_C11, std_C11 = (np.array(how[key], np.float32)[:, None, None] for key in ("mean", "std"))
    pixels_CHW = pixels(source, how).transpose(2, 0, 1).astype(np.float32)
    return (pixels_CHW / np.float32(255) - mean_C11) / std_C11


def check(how: Mapping[str, Any]) -> None:
    """Refuse a description that pictures can't be read by here.

    Raises:
        ValueError: it names what is wrong.
    """
    shape, resize = how.get("shape"), how.get("resize")
    sides = list(shape) if isinstance(shape, list) else []
    sides += resize if isinstance(resize, list) else [resize] * (resize is not None)
    right = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sides)
    if not right or not isinstance(shape, list) or len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(f"preprocessing: shape {shape!r}, resize {resize!r} describe no images")
    for key in ("mean", "std"):
        numbers: Any = how.get(key)
        fits = isinstance(numbers, list) and len(numbers) == shape[0]
        fits = fits and all(isinstance(n, int | float) and math.isfinite(n) for n in numbers)
        if not fits or (key == "std" and min(numbers) <= 0):
            raise ValueError(f"preprocessing.{key} is {numbers!r}; wanted {shape[0]} numbers")
    if how.get("interpolation", "bicubic") not in INTERPOLATIONS:
        raise ValueError(
            f"preprocessing.interpolation is {how['interpolation']!r}; wanted {INTERPOLATIONS}"
        )
    if how.get("crop", "round") not in CROPS:
        raise ValueError(f"preprocessing.crop is {how['crop']!r}; wanted {CROPS}")
    if not how.get("antialias", True):
        raise ValueError(
            "preprocessing.antialias is false: images are then resized by torch, which isn't here; "
            "prepare them yourself, for Runner.predict"
        )


def pixels(
    source: Any,
    how: Mapping[str, Any],
    augment: Change | None = None,
    plain: Callable[[Any, tuple[int, int], str], Any] | None = None,
) -> np.ndarray:
    """The pixels of an image that the network reads, uint8 [H, W, C].

    Args:
        source: an image of Pillow, a file's bytes, or its name.
        how: the description.
        augment: changes the picture; the whole of it is then resized to [H, W].
        plain: resizes a picture to (height, width) by an interpolation where pixels are not to be
            averaged.

    Raises:
        ValueError: a file that is no such image, named with the reason.
    """
    channels, height, width = how["shape"]
    with _named(source):
        picture = _upright(source, how)
        if augment is not None:
            picture, how = augment(picture), {**how, "resize": [height, width]}
        image = _resized(picture, how, plain)
    half = math.floor if how.get("crop") == "floor" else round
    top, left = (
        half((size - target) / 2) for size, target in ((image.height, height), (image.width, width))
    )
    cut = image.crop((left, top, left + width, top + height))
    return np.array(cut).reshape(height, width, channels)


def upright(source: Any, how: Mapping[str, Any]) -> Any:
    """The whole picture before it is resized: of Pillow, in 8 bits, upright, grey or RGB.

    Args:
        source, how: as for `pixels`, which makes the same of what comes back.

    Raises:
        ValueError: as for `pixels`.
    """
    with _named(source):
        return _upright(source, how)


def check_whole(source: Any, how: Mapping[str, Any]) -> None:
    """Refuse a picture that `pixels` would refuse, with as little work as tells.

    Of a PNG the checksums are checked, a JPEG is decoded at an eighth of its size, and others are
    read whole.

    Args:
        source, how: as for `pixels`.

    Raises:
        ValueError: the reason, without the source's name.
    """
    from PIL import Image, ImageOps

    try:
        if not isinstance(source, Image.Image):
            with _quiet(), _opened(source) as image:
                _check_header(image, how)
                plain = image.mode in ("L", "LA", "P", "RGB", "RGBA", "CMYK")
                if plain and image.format == "PNG" and not image.info.get("exif"):
                    image.verify()
                    return
                if plain and image.format in ("JPEG", "MPO"):
                    image.draft("L", (1, 1))
                    ImageOps.exif_transpose(image)
                    return
        _upright(source, how)
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        known = str(error).startswith("cannot identify")  # and names the object of the bytes
        reason = "" if known else f": {str(error) or type(error).__name__}"
        raise ValueError(f"can't be read as an image{reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of size and of broken tags; what matters is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def count(source: Any) -> int:
    """How many pixels an image says that it has, without reading them.

    Raises:
        ValueError: as for `pixels`.
    """
    with _named(source), _quiet(), _opened(source) as image:
        return image.width * image.height


@contextmanager
def _named(source: Any) -> Iterator[None]:
    """Errors inside name the source."""
    try:
        yield
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        reason = str(error) or type(error).__name__
        if isinstance(source, bytes) and reason.startswith("cannot identify"):
            reason = "they are of no format that is read"  # it names the object of the bytes
        named = source if isinstance(source, str | Path) else type(source).__name__
        raise ValueError(f"can't read {named} as an image: {reason}") from error


def _opened(source: Any) -> Any:
    """An image of Pillow, of a file, its bytes, or as it is."""
    from PIL import Image

    if isinstance(source, Image.Image):
        return nullcontext(source)
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source), formats=_formats())
    path = Path(source)
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    return Image.open(path, formats=_formats())


def _upright(source: Any, how: Mapping[str, Any]) -> Any:
    """The picture in 8 bits, upright, in mode L or RGB, for as many channels."""
    from PIL import Image, ImageOps

    with _quiet(), _opened(source) as image:
        _check_header(image, how)
        tags, transparent = getattr(image, "tag_v2", {}), image.info.get("transparency")
        file_format, upright = image.format, ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):
        upright = Image.fromarray(
            _eight_bits(np.asarray(upright), upright.mode, file_format, tags, transparent)
        )
    elif upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright)
    return upright.convert("RGB").convert("L" if how["shape"][0] == 1 else "RGB")


def _check_header(image: Any, how: Mapping[str, Any]) -> None:
    """Refuse several pictures, too many pixels, and TIFF's rarer numbers, taken for others."""
    if not 0 < image.width * image.height <= LARGEST:
        raise ValueError(f"{image.width} × {image.height} pixels")
    if getattr(image, "is_animated", False) and image.format != "MPO":
        frames = getattr(image, "n_frames", "several")
        raise ValueError(f"it holds {frames} pictures, and one is needed")
    if math.prod(_size(image, how)) > LARGEST:
        raise ValueError(f"{image.width} × {image.height} pixels are too narrow a strip")
    tags = getattr(image, "tag_v2", {})
    signed, inverted = 2 in np.atleast_1d(tags.get(339, 1)), tags.get(262) == 0
    if signed or (inverted and image.mode.startswith(("I", "F"))):
        what = "numbers with a sign" if signed else "white as 0 in more than 8 bits"
        raise ValueError(f"a TIFF of {what}: save it as PNG")


def _eight_bits(
    pixels_HW: np.ndarray,
    mode: str,
    file_format: str | None,
    tags: Mapping[int, Any],
    transparent: Any,
) -> np.ndarray:
    """Grey of more than 8 bits, rounded; uint8 [H, W]."""
    if mode == "F":
        if not (pixels_HW.min() >= 0 and pixels_HW.max() <= 1):
            raise ValueError("floats must lie in 0..1, where white is 1")
        return np.rint(pixels_HW * 255).astype(np.uint8)
    if mode == "I" and file_format not in ("PNG", "PPM"):  # these two have 16 bits, at full range
        raise ValueError("what is white can't be told of 32-bit numbers: save it in 8 or 16 bits")
    bits = int(np.atleast_1d(tags.get(258, 16))[0])
    grey_HW = np.rint(pixels_HW.astype(np.float64) * (255 / (2**bits - 1))).clip(0, 255)
    if isinstance(transparent, int):
        grey_HW[pixels_HW == transparent] = 255
    return grey_HW.astype(np.uint8)


def _size(image: Any, how: Mapping[str, Any]) -> tuple[int, int]:
    """The size that an image is resized to: height, width."""
    _, height, width = how["shape"]
    resize = how.get("resize") or (height, width)
    if not isinstance(resize, int):
        return resize[0], resize[1]
    short, long = sorted(image.size)
    longer = int(resize * long / short)
    return (resize, longer) if image.width >= image.height else (longer, resize)


def _resized(image: Any, how: Mapping[str, Any], plain: Any) -> Any:
    from PIL import Image

    mode, (height, width) = how.get("interpolation", "bicubic"), _size(image, how)
    if (width, height) == image.size:
        return image
    if how.get("antialias", True):
        return image.resize((width, height), Image.Resampling[mode.upper()])
    assert plain is not None
    return plain(image, (height, width), mode)


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow knows."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)
