"""Image files as a network was trained on them: by the description that is saved with the model.

Letters: C channels, H height, W width.

The description is plain data, `MultiExitModel.preprocessing` of kind `"image"`:

| key | meaning |
|---|---|
| `shape` | [C, H, W] of what the network reads; C is 1 (grey) or 3 (RGB) |
| `resize` | a number: of the shorter side, the ratio stays; or [height, width]; absent: [H, W] |
| `interpolation` | a key of `INTERPOLATIONS`; absent: `"bicubic"` |
| `antialias` | whether pixels are averaged when an image shrinks; absent: true |
| `crop` | where half a pixel goes: `"round"` (torchvision, timm), `"floor"`; absent: `"round"` |
| `mean`, `std` | per channel, of pixels in 0..1: (x − mean) / std |

After resizing, the H × W in the middle are cut out. Descriptions of older versions have `shape`,
`mean` and `std` alone: the absent keys mean what those versions did.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from multiexit.data.images import normalise
from multiexit.files import schema
from multiexit_runner import pictures
from multiexit_runner.pictures import CROPS, INTERPOLATIONS, LARGEST

PLAIN = INTERPOLATIONS[:3]  # that there are without antialias


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
        source: a regular file of one picture, in one of `pictures.FORMATS`; its bytes; or an image
            of Pillow.
        how: the description (see above).
        augment: changes the picture, upright in mode L or RGB, to another one; the whole of that
            is then resized to [H, W].

    Raises:
        ValueError: a file that is no such image, named with the reason; a wrong description.
    """
    check(how)
    pixels_HWC = pictures.pixels(source, how, augment, _plain)
    pixels_CHW = torch.from_numpy(pixels_HWC).permute(2, 0, 1)
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
            "crop": schema.one_of(*CROPS),
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


def _plain(image: Any, size: tuple[int, int], mode: str) -> Any:
    """Resize without averaging pixels, as torch does."""
    from PIL import Image

    pixels_HWc = np.atleast_3d(np.asarray(image))
    x_1CHW = torch.from_numpy(pixels_HWc.astype(np.float32)).permute(2, 0, 1)[None]
    corners = {} if mode == "nearest" else {"align_corners": False}
    x_CHW = F.interpolate(x_1CHW, size, mode=mode, **corners)[0].round().clamp(0, 255)
    return Image.fromarray(x_CHW.byte().permute(1, 2, 0).squeeze(-1).numpy())


def _numbers(low: float = -math.inf) -> schema.Check:
    return schema.listed(schema.number(low), 1, 3)
