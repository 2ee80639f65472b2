"""Images that are read from files as they are needed, of any size, as a split.

Letters: N rows of the split, C channels, H height, W width.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from multiexit.arguments import unknown
from multiexit.data import image_files
from multiexit.data.own import stored
from multiexit.data.splits import row_numbers

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as pretrained networks have

Augment = Callable[[Any], Any]
"""From an image of Pillow to another one, of any size."""


def preparation(size: int | None = None, own: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """How images are made ready, as `multiexit.data.image_files` reads them.

    Args:
        size: H and W; None is those of `own`, or 224.
        own: as the network says, in whose ratio another size is cut out; where it says its shape
            alone, or None, images are read as ImageNet's are.

    Raises:
        ValueError: a description that can't be read by.
    """
    if own is None or "mean" not in own:
        if size is None:
            size = 224 if own is None else int(own["shape"][-1])
        return {
            "shape": [3, size, size],
            "resize": round(size / 0.875) if size >= 64 else size,
            "interpolation": "bicubic",
            "antialias": True,
            "mean": list(MEAN),
            "std": list(STD),
        }
    image_files.check(own)
    channels, *sides = own["shape"]
    if size is None or sides == [size, size]:
        return dict(own)
    resize = own.get("resize") or sides
    if isinstance(resize, int):
        resize = max(size, round(resize * size / max(sides)))
    else:
        resize = [max(size, round(r * size / side)) for r, side in zip(resize, sides, strict=True)]
    return {**own, "shape": [channels, size, size], "resize": resize}


def in_words(how: Mapping[str, Any]) -> str:
    """A preparation in one line."""
    resize = how.get("resize") or how["shape"][1:]
    before = f"shorter side {resize}" if isinstance(resize, int) else "{} × {}".format(*resize)
    size = "{} × {}".format(*how["shape"][1:])
    size = size if before == size else f"{size} of {before}"
    mean, std = ("/".join(f"{x:.4g}" for x in how[name]) for name in ("mean", "std"))
    return f"{size}, {how.get('interpolation', 'bicubic')}, mean {mean}, deviation {std}"


class ImageRows(Dataset[tuple[Tensor, Tensor]]):
    """Images in files or in memory, read and prepared one by one.

    Args:
        images: N files' names, images of Pillow, files' bytes, or `Stored`.
        labels: [N] classes, or [N, C].
        how: the preparation.
        augment: changes an image of Pillow before it is prepared, in training.
    """

    lengths: list[int] | None = None

    def __init__(
        self,
        images: Sequence[Any],
        labels: Tensor,
        how: dict[str, Any],
        augment: Augment | None = None,
    ):
        self.images, self.labels, self.how, self.augment = list(images), labels, how, augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One image [C, H, W], and its label.

        Raises:
            ValueError: an image that can't be read, by its file.
        """
        augment = None if self.augment is None else partial(_augmented, self.augment)
        image = stored.read(self.images[index])
        if isinstance(image, dict):
            image = image["bytes"]
        return image_files.read(image, self.how, augment), self.labels[index]

    def subset(self, indices: Sequence[int] | Tensor) -> "ImageRows":
        """Take the rows `indices`, in that order, with the same augmentation."""
        rows = row_numbers(indices, len(self))
        images = [self.images[row] for row in rows.tolist()]
        return ImageRows(images, self.labels[rows], self.how, self.augment)

    def for_evaluation(self) -> "ImageRows":
        """The same rows without augmentation."""
        return ImageRows(self.images, self.labels, self.how)


def _augmented(augment: Augment, image: Any) -> Any:
    """The image that an augmentation makes, in Pillow's form and in as many channels.

    Raises:
        ValueError: it makes neither such an image nor uint8 pixels.
    """
    from PIL import Image
    from torchvision.transforms.v2.functional import to_pil_image

    changed = augment(image)
    if isinstance(changed, Tensor) and changed.dtype == torch.uint8:
        changed = to_pil_image(changed)
    if not isinstance(changed, Image.Image):
        what = f"{changed.dtype} " * isinstance(changed, Tensor) + type(changed).__name__
        raise ValueError(
            f"augment made a {what} of an image: it must give an image of Pillow, or uint8 pixels "
            "[C, H, W]; size, scale and normalisation of the network's own come after it"
        )
    return changed.convert(image.mode)


def crop(image: Any) -> Any:
    """A random part of 35 to 100 % of the area, mirrored half of the time."""
    from torchvision.transforms import RandomResizedCrop
    from torchvision.transforms.functional import hflip

    top, left, height, width = RandomResizedCrop.get_params(image, [0.35, 1.0], [3 / 4, 4 / 3])
    part = image.crop((left, top, left + width, top + height))
    return hflip(part) if torch.rand(()) < 0.5 else part


def randaugment(image: Any) -> Any:
    """`crop`, then two of RandAugment's changes of strength 9 (Cubuk et al. 2020)."""
    return _changes("RandAugment")(crop(image))


def trivialaugment(image: Any) -> Any:
    """`crop`, then one change of any strength (Müller & Hutter, "TrivialAugment", 2021)."""
    return _changes("TrivialAugmentWide")(crop(image))


@cache
def _changes(name: str) -> Any:
    from torchvision.transforms import v2

    return getattr(v2, name)()


AUGMENTS: dict[str, Augment | None] = {
    "crop": crop,
    "randaugment": randaugment,
    "trivialaugment": trivialaugment,
    "none": None,
}


def augment_of(augment: str | Augment | None) -> Augment | None:
    """The augmentation of a name, or a function as it is.

    Raises:
        ValueError: an unknown name.
    """
    if not isinstance(augment, str):
        return augment
    if augment not in AUGMENTS:
        raise unknown("augmentation", augment, AUGMENTS)
    return AUGMENTS[augment]
