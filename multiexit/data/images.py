"""Images in memory as a split, augmented and normalised a batch at a time.

Letters: N rows of the split, B batch rows, C channels, H height, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Subset

from multiexit.data import raw_values
from multiexit.data.batches import move
from multiexit.data.splits import row_numbers

Batch = tuple[Tensor, Tensor]

LARGEST = 2**31
"""Bytes of the largest set that is kept on an accelerator; CIFAR has a tenth of that."""


class ImageDataset(Dataset[Batch]):
    """Images [N, C, H, W] that are fetched, augmented and normalised as whole batches.

    With augmentation an image is padded with zeros on all sides, cut out again at a random place,
    and mirrored half of the time. All of that happens where the images are (see `to`), but random
    numbers come from torch's global CPU generator: batches are the same on every device.

    Args:
        images: uint8 [N, C, H, W].
        labels: [N] classes, or several labels or numbers a row [N, C]: a tensor, list, array or
            series with any index.
        mean: per channel, of pixels in 0..1; subtracted.
        std: per channel; divided by.
        augment: whether to crop and mirror.
        pad: how many pixels the crop may shift in each direction.

    Raises:
        ValueError: tensors or lists that don't fit together.

    Example:
        >>> import torch
        >>> from multiexit.data.images import ImageDataset
        >>> images = torch.full((6, 1, 8, 8), 255, dtype=torch.uint8)
        >>> data = ImageDataset(images, [0, 1, 0, 1, 0, 1], mean=(0.5,), std=(0.25,))
        >>> images_BCHW, labels_B = data.__getitems__([4, 5])
        >>> images_BCHW.shape, images_BCHW.unique(), labels_B
        (torch.Size([2, 1, 8, 8]), tensor([2.]), tensor([0, 1]))
    """

    lengths: list[int] | None = None

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | Iterable[int],
        mean: Sequence[float],
        std: Sequence[float],
        augment: bool = False,
        pad: int = 4,
    ):
        if images.ndim != 4 or images.dtype != torch.uint8:
            raise ValueError(
                f"images must be uint8 [N, C, H, W], got {images.dtype} of {tuple(images.shape)}"
            )
        labels = raw_values.numbers(labels).to(images.device)
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images need as many labels, got {tuple(labels.shape)}")
        if not len(mean) == len(std) == images.shape[1] or min(std) <= 0:
            raise ValueError(
                f"mean={tuple(mean)} and std={tuple(std)} must have one number for each of "
                f"{images.shape[1]} channels, and std must be above 0"
            )
        if pad < 0:
            raise ValueError(f"pad={pad} must be 0 or more")
        self.images = images
        self.labels = labels
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.augment = augment
        self.pad = pad
        self._mean_C11, self._std_C11 = (
            torch.tensor(numbers, device=images.device)[:, None, None] for numbers in (mean, std)
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        """One image [C, H, W] and its label, a scalar."""
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """A batch: images [B, C, H, W], normalised, and labels [B]."""
        rows = move(torch.as_tensor(indices, dtype=torch.int64), self.images.device)
        images = self.images[rows]
        if self.augment:
            images = crop_and_mirror(images, self.pad)
        return normalise(images, self._mean_C11, self._std_C11), self.labels[rows]

    def collate(self, items: Batch | list[Batch]) -> Batch:
        """The batch as `__getitems__` made it; single rows are stacked."""
        if isinstance(items, list):
            return torch.stack([row[0] for row in items]), torch.stack([row[1] for row in items])
        return items

    def to(self, device: torch.device) -> ImageDataset:
        """Put the rows on a device; batches are cut, augmented and normalised there."""
        moved = copy.copy(self)
        for name in ("images", "labels", "_mean_C11", "_std_C11"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def subset(self, indices: Sequence[int] | Tensor) -> ImageDataset:
        """Take the rows `indices`, in that order, with the same augmentation.

        Raises:
            ValueError: a mask, a fraction, or a row that isn't there.
        """
        rows = row_numbers(indices, len(self))
        return ImageDataset(
            self.images[rows], self.labels[rows], self.mean, self.std, self.augment, self.pad
        )

    def for_evaluation(self) -> ImageDataset:
        """The same rows without augmentation."""
        return ImageDataset(self.images, self.labels, self.mean, self.std)


@dataclass(frozen=True)
class Images:
    """An image data set.

    Args:
        train: the training set.
        test: the test set, never augmented.
        labels: the classes' names.
        mean: what the images are normalised by, per channel.
        std: likewise.
    """

    train: ImageDataset
    test: ImageDataset
    labels: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def preprocessing(self) -> dict[str, Any]:
        """The preparation of images, for `MultiExitModel.preprocessing`.

        The sets' own images are taken as they are. Files of another size are to be resized to
        theirs, by the shorter side, and cut (see `multiexit.data.image_files`).
        """
        shape = list(self.train.images.shape[1:])
        return {
            "kind": "image",
            "shape": shape,
            "resize": max(shape[1:]),
            "interpolation": "bicubic",
            "antialias": True,
            "mean": list(self.mean),
            "std": list(self.std),
        }


def on_device(data: Any, device: torch.device) -> Any:
    """A set of images, or a `Subset` of one, whole on a device; anything else as it is."""
    if isinstance(data, Subset):
        return Subset(on_device(data.dataset, device), data.indices)
    fits = isinstance(data, ImageDataset) and data.images.nbytes <= LARGEST
    return data.to(device) if fits else data


def crop_and_mirror(images_BCHW: Tensor, pad: int) -> Tensor:
    """Shift each image by up to `pad` pixels, filling with 0, and mirror half of them.

    Draws from torch's global generator: B shifts down, B shifts right, B mirrorings.

    Args:
        images_BCHW: of any type.
        pad: pixels.

    Returns:
        The images [B, C, H, W], of the same type.
    """
    batch, _, height, width = images_BCHW.shape
    down_B = torch.randint(2 * pad + 1, (batch,))
    right_B = torch.randint(2 * pad + 1, (batch,))
    mirror_B = torch.rand(batch) < 0.5
    draws_4B = torch.stack([torch.arange(batch), down_B, right_B, mirror_B.long()])
    row_B, down_B, right_B, mirror_B = move(draws_4B, images_BCHW.device)  # in one go
    padded = F.pad(images_BCHW, (pad, pad, pad, pad))
    # A view with every window of the padded image: [B, C, 2 pad + 1, 2 pad + 1, H, W].
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    cropped_BCHW = windows[row_B, :, down_B, right_B]
    return torch.where(mirror_B[:, None, None, None] == 1, cropped_BCHW.flip(3), cropped_BCHW)


def normalise(images_BCHW: Tensor, mean_C11: Tensor, std_C11: Tensor) -> Tensor:
    """`(images / 255 - mean) / std` per channel, to the same bits on every device.

    Args:
        images_BCHW: uint8.
        mean_C11, std_C11: of pixels in 0..1.

    Returns:
        float32 [B, C, H, W].
    """
    # By a number, a GPU would multiply by 1 / 255, which rounds otherwise.
    return (images_BCHW.float() / torch.full_like(mean_C11, 255) - mean_C11) / std_C11
