"""CIFAR-10 and CIFAR-100 from torchvision's folder or the hub's parquet files.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from multiexit.arguments import unknown
from multiexit.data.images import ImageDataset, Images
from multiexit.data.sources import canonical, not_found, read_shard, shards
from multiexit.files.paths import CACHE, home
from multiexit.losses.labels import check_labels

SIZE = 32

NORMALISATIONS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation per channel: of each training set, and ImageNet's, which many
published checkpoints were trained with."""


@dataclass(frozen=True)
class _Source:
    """The form in which one of the two data sets is stored."""

    name: str
    classes: int
    config: str  # the folder of the hub's parquet files
    column: str  # their label column
    official: str  # the folder in the official archive


_SOURCES = {
    "cifar10": _Source("cifar10", 10, "plain_text", "label", "cifar-10-batches-py"),
    "cifar100": _Source("cifar100", 100, "cifar100", "fine_label", "cifar-100-python"),
}


class _Split(NamedTuple):
    """One split as it was read: uint8 images [N, 3, 32, 32], labels [N], class names."""

    images: Tensor
    labels: Tensor
    names: tuple[str, ...]


def load(
    name: str,
    data_dir: str | Path | None = None,
    download: bool = False,
    augment: bool = True,
    normalisation: str | None = None,
) -> Images:
    """Read CIFAR-10 or CIFAR-100 into memory.

    Args:
        name: `"cifar10"` or `"cifar100"`, in any spelling.
        data_dir: a folder with the official archive's folder (`cifar-10-batches-py`,
            `cifar-100-python`) or the hub's parquet files (`train-*.parquet`), or a folder above
            it (`cifar10/`, `cifar10/plain_text/`, …). None means `~/.cache/multiexit`.
        download: fetch the official archive into `data_dir` if nothing is there.
        augment: crop and mirror the training images.
        normalisation: a key of `NORMALISATIONS`; None takes the data set's own.

    Returns:
        The training and test set, the classes' names, and the normalisation.

    Raises:
        FileNotFoundError: data that isn't there; the message says where it was looked for.
        ValueError: an unknown name, or a damaged file (named, with the row).

    Example:
        A folder in the hub's layout, with one image in each split:

        >>> import io, tempfile, PIL.Image, pyarrow, pyarrow.parquet
        >>> from multiexit.data import cifar
        >>> PIL.Image.new("RGB", (32, 32)).save(png := io.BytesIO(), "PNG")
        >>> table = pyarrow.table({"img": [{"bytes": png.getvalue()}], "label": [3]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for split in ("train", "test"):
        ...         pyarrow.parquet.write_table(table, f"{folder}/{split}-00000-of-00001.parquet")
        ...     images = cifar.load("cifar10", folder)
        >>> images.train.images.shape, images.train.labels
        (torch.Size([1, 3, 32, 32]), tensor([3]))
    """
    key = canonical(name)
    if key not in _SOURCES:
        raise unknown("data set", name, _SOURCES)
    normalisation = key if normalisation is None else normalisation
    if normalisation not in NORMALISATIONS:
        raise unknown("normalisation", normalisation, NORMALISATIONS)
    source = _SOURCES[key]
    root = home(CACHE if data_dir is None else data_dir)
    if root is None:
        raise ValueError(
            "nobody says what the home folder is: give the data's folder (data_dir, --data-dir)"
        )
    train, test = _read(source, root, download)
    mean, std = NORMALISATIONS[normalisation]
    return Images(
        ImageDataset(train.images, train.labels, mean, std, augment),
        ImageDataset(test.images, test.labels, mean, std),
        train.names,
        mean,
        std,
    )


def _read(source: _Source, root: Path, download: bool) -> tuple[_Split, _Split]:
    """Both splits, from the first place that has them."""
    folders = [root, root / source.name]
    folders += [folder / source.config for folder in folders]
    for folder in folders:
        if (folder / source.official).is_dir():
            return _read_official(source, folder, download)
        if shards(folder, "train"):
            return _read_parquet(source, folder, "train"), _read_parquet(source, folder, "test")
    if root.name == source.official and root.is_dir():
        return _read_official(source, root.parent, download)
    if download:
        return _read_official(source, root, download)
    raise not_found(
        f"{source.name} ({source.official}/ or train-*.parquet)",
        folders,
        f"Give a folder that has it (data_dir), or allow the download (download=True) into {root}.",
    )


def _read_official(source: _Source, root: Path, download: bool) -> tuple[_Split, _Split]:
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset_class = CIFAR10 if source.name == "cifar10" else CIFAR100
    try:
        train, test = (dataset_class(root, train, download=download) for train in (True, False))
    except RuntimeError as error:
        raise ValueError(
            f"{root / source.official}: a file is missing or not the official one ({error})"
        ) from error
    except OSError as error:
        raise FileNotFoundError(
            f"{source.name} could not be read or downloaded in {root}: {error}\n"
            f"Without network, unpack the official archive there ({dataset_class.url})."
        ) from error
    return _official_split(train), _official_split(test)


def _official_split(dataset: Any) -> _Split:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return _Split(images, torch.tensor(dataset.targets), tuple(dataset.classes))


def _read_parquet(source: _Source, folder: Path, split: str) -> _Split:
    files = shards(folder, split)
    if not files:
        remedy = "Fetch all files of the data set into that folder."
        raise not_found(source.name, [folder / f"{split}-*.parquet"], remedy)
    images, labels, names = [], [], tuple(str(number) for number in range(source.classes))
    for file in files:
        table = read_shard(file, ("img", source.column))
        if not len(table):
            raise ValueError(f"{file}: no rows")
        labels.append(torch.tensor(table[source.column].to_pylist()))
        check_labels(labels[-1], source.classes, str(file))
        images.append(_decode(table["img"].to_pylist(), file))
        names = _class_names(table.schema.metadata, source) or names
    return _Split(torch.cat(images), torch.cat(labels), names)


def _class_names(metadata: dict[bytes, bytes] | None, source: _Source) -> tuple[str, ...] | None:
    """The classes' names, which `datasets` writes into a parquet file's metadata."""
    if not metadata or b"huggingface" not in metadata:
        return None
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    return tuple(features[source.column].get("names", ())) or None


def _decode(cells: list[dict[str, bytes]], file: Path) -> Tensor:
    """Decode compressed images to uint8 [N, 3, 32, 32].

    One thread: for images as small as these, more are slower.
    """
    from PIL import Image

    pixels = np.empty((len(cells), SIZE, SIZE, 3), np.uint8)
    for row, cell in enumerate(cells):
        try:
            image = Image.open(io.BytesIO(cell["bytes"]))
            if image.size == (SIZE, SIZE):
                pixels[row] = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{file}: the image in row {row} can't be read ({error})") from error
        if image.size != (SIZE, SIZE):
            raise ValueError(
                f"{file}: the image in row {row} is {image.width}×{image.height}, "
                f"expected {SIZE}×{SIZE}"
            )
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
