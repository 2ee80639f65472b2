"""Image files as a network was trained on them: by the description that is saved with the model.

Letters: C channels, H height, W width.

The description is plain data, `MultiExitModel.preprocessing` of kind `"image"`:

| key | meaning |
|---|---|
| `shape` | [C, H, W] of what the network reads; C is 1 (grey) or 3 (RGB) |
| `resize` | a number: of the shorter side, the ratio stays; or [height, width]; absent: [H, W] |
| `interpolation` | a key of `INTERPOLATIONS`; absent: `"bicubic"` |
| `antialias` | whether pixels are averaged when an image shrinks; absent: true |
| `mean`, `std` | per channel, of pixels in 0..1: (x − mean) / std |

After resizing, the H × W in the middle are cut out. Descriptions of older versions have `shape`,
`mean` and `std` alone: the absent keys mean what those versions did.
"""

import io
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from multiexit.data.images import normalise
from multiexit.files import schema

FORMATS = ("PNG", "JPEG", "MPO", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
"""The formats that are read, by Pillow's names. Others are refused: some of them start programs."""

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
PLAIN = INTERPOLATIONS[:3]  # that there are without antialias

LARGEST = 178_956_970
"""Pixels of the largest image, as many as Pillow opens by default."""


def read(
    source: Any, how: Mapping[str, Any], augment: Callable[[Any], Any] | None = None
) -> Tensor:
    """An image file as the network reads it, float32 [C, H, W].

    The file becomes 8-bit pixels, turned upright as its EXIF says: 16 bits are rounded to 8, floats
    are read as 0..1, transparent pixels lie on white, CMYK, YCbCr and palettes become RGB, and grey
    is Pillow's luma, (299 R + 587 G + 114 B) / 1000. These are resized by Pillow, cut and
    normalised: the pixels are those of torchvision's `Resize` and `CenterCrop` on such an image,
    and of timm's transforms for evaluation.

    Args:
        source: a regular file in one of `FORMATS`, of one picture; such a file's bytes; or an image
            of Pillow.
        how: the description (see above).
        augment: changes the picture, upright in mode L or RGB, to another one; the whole of that
            is then resized to [H, W].

    Raises:
        ValueError: a file that is no such image, named with the reason; a wrong description.
    """
    check(how)
    channels, height, width = how["shape"]
    try:
        picture = _pixels(source, how)
        if augment is not None:
            picture, how = augment(picture), {**how, "resize": [height, width]}
        image = _resized(picture, how)
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        reason = str(error) or type(error).__name__
        named = source if isinstance(source, str | Path) else f"a {type(source).__name__}"
        raise ValueError(f"can't read {named} as an image: {reason}") from error
    top, left = (
        round((size - target) / 2)
        for size, target in ((image.height, height), (image.width, width))
    )
    pixels = np.array(image.crop((left, top, left + width, top + height)))
    pixels_CHW = torch.from_numpy(pixels).reshape(height, width, channels).permute(2, 0, 1)
    mean_C11, std_C11 = (torch.tensor(how[name]).view(-1, 1, 1) for name in ("mean", "std"))
    return normalise(pixels_CHW, mean_C11, std_C11)


def check(how: Mapping[str, Any]) -> None:
    """Refuse a description that images can't be prepared by.

    Raises:
        ValueError: it names the key, the value and what would be right.
    """
    side = schema.whole(1, LARGEST)
    schema.table(
        {"shape": schema.listed(side, 3, 3), "mean": _numbers(), "std": _numbers(1e-9)},
        {
            "resize": schema.optional(schema.either(side, schema.listed(side, 2, 2))),
            "interpolation": schema.one_of(*INTERPOLATIONS),
            "antialias": schema.flag,
        },
        rest=schema.plain,
    )("preprocessing", how)
    channels, height, width = how["shape"]
    if channels not in (1, 3) or height * width > LARGEST:
        right = f"[C, H, W] with 1 or 3 channels and {LARGEST} pixels at most"
        raise schema.wrong("preprocessing.shape", how["shape"], right)
    for name in ("mean", "std"):
        if len(how[name]) != channels:
            right = f"a number for each of {channels} channels"
            raise schema.wrong(f"preprocessing.{name}", how[name], right)
    resize = how.get("resize") or (height, width)
    rows, columns = (resize, resize) if isinstance(resize, int) else resize
    if rows < height or columns < width:
        right = f"at least {height} × {width}, which is cut out"
        raise schema.wrong("preprocessing.resize", resize, right)
    if not how.get("antialias", True) and how.get("interpolation", "bicubic") not in PLAIN:
        right = f"true, or interpolation one of {list(PLAIN)}"
        raise schema.wrong("preprocessing.antialias", False, right)


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


def _pixels(source: Any, how: Mapping[str, Any]) -> Any:
    """The picture in 8 bits, upright, in mode L or RGB, for as many channels."""
    from PIL import Image, ImageOps

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of size and of broken tags; what matters is refused
        with _opened(source) as image:
            if not 0 < image.width * image.height <= LARGEST:
                raise ValueError(f"{image.width} × {image.height} pixels")
            if getattr(image, "is_animated", False) and image.format != "MPO":
                frames = getattr(image, "n_frames", "several")
                raise ValueError(f"it holds {frames} pictures, and one is needed")
            if math.prod(_size(image, how)) > LARGEST:
                raise ValueError(f"{image.width} × {image.height} pixels are too narrow a strip")
            _check_samples(image)
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


def _check_samples(image: Any) -> None:
    """Refuse TIFF's rarer numbers, which Pillow takes for others."""
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


def _resized(image: Any, how: Mapping[str, Any]) -> Any:
    from PIL import Image

    mode, (height, width) = how.get("interpolation", "bicubic"), _size(image, how)
    if (width, height) == image.size:
        return image
    if how.get("antialias", True):
        return image.resize((width, height), Image.Resampling[mode.upper()])
    pixels_HWc = np.atleast_3d(np.asarray(image))
    x_1CHW = torch.from_numpy(pixels_HWc.astype(np.float32)).permute(2, 0, 1)[None]
    corners = {} if mode == "nearest" else {"align_corners": False}
    x_CHW = F.interpolate(x_1CHW, (height, width), mode=mode, **corners)[0].round().clamp(0, 255)
    return Image.fromarray(x_CHW.byte().permute(1, 2, 0).squeeze(-1).numpy())


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow knows."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _numbers(low: float = -math.inf) -> schema.Check:
    return schema.listed(schema.number(low), 1, 3)
