"""CIFAR from parquet and from torchvision's folder, digits, augmentation in batches."""

import hashlib
import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from multiexit.data import cifar
from multiexit.data.cifar import NORMALISATIONS, load
from multiexit.data.digits import load as digits
from multiexit.data.images import ImageDataset, Images, crop_and_mirror, normalise
from multiexit.data.sources import read_shard

NAMES = {"cifar10": [f"kind {i}" for i in range(10)], "cifar100": [f"kind {i}" for i in range(100)]}
COLUMN = {"cifar10": "label", "cifar100": "fine_label"}
OFFICIAL = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}

DATA = os.environ.get("MULTIEXIT_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="MULTIEXIT_DATA is not set")


def pixels(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)


def encode(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def write_shard(
    file: Path, images: list[bytes | None], labels: list, name: str = "cifar10"
) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": image, "path": None} for image in images]
    table = pa.table({"img": cells, COLUMN[name]: labels})
    features = {COLUMN[name]: {"names": NAMES[name], "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), file)


def write_parquet(folder: Path, name: str = "cifar10") -> None:
    """Five training images in two shards and two for testing, the labels 0, 1, 2, …"""
    train = [encode(image) for image in pixels(5)]
    write_shard(folder / "train-00000-of-00002.parquet", train[:3], [0, 1, 2], name)
    write_shard(folder / "train-00001-of-00002.parquet", train[3:], [3, 4], name)
    test = [encode(image) for image in pixels(2, seed=1)]
    write_shard(folder / "test-00000-of-00001.parquet", test, [0, 1], name)


def write_official(folder: Path, name: str, monkeypatch) -> None:
    """The same rows as the official archive has them, with its checksums replaced by theirs."""
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[
        name
    ]
    here = folder / OFFICIAL[name]
    here.mkdir(parents=True)

    def dump(file: str, content: dict) -> str:
        (here / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((here / file).read_bytes()).hexdigest()

    key = "labels" if name == "cifar10" else "fine_labels"
    for attribute, images in (("train_list", pixels(5)), ("test_list", pixels(2, seed=1))):
        flat = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        md5 = dump(attribute, {"data": flat, key: list(range(len(images)))})
        monkeypatch.setattr(kind, attribute, [[attribute, md5]])
    meta = dict(kind.meta)
    meta["md5"] = dump(meta["filename"], {meta["key"]: NAMES[name]})
    monkeypatch.setattr(kind, "meta", meta)


def check(images: Images, name: str) -> None:
    for split, expected in ((images.train, pixels(5)), (images.test, pixels(2, seed=1))):
        assert torch.equal(split.images, torch.from_numpy(expected).permute(0, 3, 1, 2))
        assert split.labels.tolist() == list(range(len(expected)))
        assert split.labels.dtype == torch.int64
        assert split.lengths is None
    assert images.labels == tuple(NAMES[name])
    assert images.train.augment
    assert not images.test.augment


# Sources


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("cifar10", ""),
        ("cifar10", "cifar10"),
        ("CIFAR-10", "plain_text"),
        ("cifar_10", "cifar10/plain_text"),
        ("cifar100", ""),
        ("cifar100", "cifar100"),
        ("CIFAR-100", "cifar100/cifar100"),
    ],
)
def test_parquet(name, place, tmp_path):
    key = "cifar100" if "100" in name else "cifar10"
    write_parquet(tmp_path / place, key)
    check(load(name, tmp_path), key)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("place", ["", "below"])
def test_official_folder(name, place, tmp_path, monkeypatch):
    write_official(tmp_path / (place and name), name, monkeypatch)
    check(load(name, str(tmp_path)), name)


def test_official_folder_itself(tmp_path, monkeypatch):
    write_official(tmp_path, "cifar10", monkeypatch)
    check(load("cifar10", tmp_path / "cifar-10-batches-py"), "cifar10")


def test_the_cache_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "CACHE", tmp_path)
    write_parquet(tmp_path / "cifar10")
    check(load("cifar10"), "cifar10")


def test_download_is_left_to_torchvision(tmp_path, monkeypatch):
    def download(self):
        write_official(Path(self.root), "cifar10", monkeypatch)

    calls = []
    monkeypatch.setattr(
        torchvision.datasets.CIFAR10,
        "download",
        lambda self: calls.append(self.root) or (len(calls) == 1 and download(self)),
    )
    check(load("cifar10", tmp_path, download=True), "cifar10")
    assert calls == [tmp_path, tmp_path]


def test_download_without_network(tmp_path, monkeypatch):
    def download(self):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)
    with pytest.raises(
        FileNotFoundError, match=r"no network\n.*official archive .*cs\.toronto\.edu"
    ):
        load("cifar10", tmp_path, download=True)


def test_missing_data_says_where_and_how(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load("cifar10", tmp_path / "nowhere")
    places = ["nowhere", "nowhere/cifar10", "nowhere/cifar10/plain_text"]
    for part in [*(str(tmp_path / place) for place in places), "data_dir", "download=True"]:
        assert part in str(caught.value)


def test_missing_test_set(tmp_path):
    write_parquet(tmp_path)
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"test-\*\.parquet"):
        load("cifar10", tmp_path)


def test_damaged_official_folder(tmp_path, monkeypatch):
    write_official(tmp_path, "cifar10", monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "test_list").write_bytes(b"cut short")
    with pytest.raises(
        ValueError, match=r"cifar-10-batches-py: a file is missing or not the offic"
    ):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["cifar", "cifar1000", "mnist", ""])
def test_unknown_name(name):
    with pytest.raises(ValueError, match=r"no data set .* cifar10, cifar100"):
        load(name)


def test_unknown_normalisation():
    with pytest.raises(ValueError, match=r"'gauss'; there are cifar10, cifar100, imagenet"):
        load("cifar10", normalisation="gauss")


GOOD = encode(pixels(1)[0])
BAD_ROWS = {
    "cut short": ([GOOD, GOOD[:200]], [0, 1], "the image in row 1 can't be read"),
    "no image": ([GOOD, b"text"], [0, 1], "the image in row 1 can't be read"),
    "no bytes": ([None, GOOD], [0, 1], "the image in row 0 can't be read"),
    "small": ([encode(pixels(1)[0, :28, :30])], [0], "row 0 is 30×28, expected 32×32"),
    "label too high": ([GOOD, GOOD], [0, 10], "label 10 in row 1 .* 0 to 9"),
    "label negative": ([GOOD], [-1], "label -1 in row 0"),
    "label missing": ([GOOD], [None], "column label is empty in row 0"),
    "no rows": ([], [], "no rows"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_are_named(case, tmp_path):
    images, labels, message = BAD_ROWS[case]
    write_parquet(tmp_path)
    write_shard(tmp_path / "train-00001-of-00002.parquet", images, labels)
    with pytest.raises(ValueError, match=rf"train-00001-of-00002\.parquet.*{message}"):
        load("cifar10", tmp_path)


def test_the_other_data_set_is_noticed(tmp_path):
    write_parquet(tmp_path, "cifar100")
    with pytest.raises(ValueError, match=r"no column label; it has img, fine_label"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_other_colour_modes_become_rgb(mode, tmp_path):
    write_parquet(tmp_path)
    stream = io.BytesIO()
    image = Image.fromarray(pixels(1)[0]).convert(mode)
    image.save(stream, "PNG")
    write_shard(tmp_path / "test-00000-of-00001.parquet", [stream.getvalue()], [0])
    found = load("cifar10", tmp_path).test.images[0].permute(1, 2, 0)
    assert np.array_equal(found, np.asarray(image.convert("RGB")))


def test_files_without_class_names(tmp_path):
    write_parquet(tmp_path)
    for file in tmp_path.iterdir():
        pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    assert load("cifar10", tmp_path).labels == tuple("0123456789")


# Augmentation and normalisation


def random_split(
    rows: int, channels: int = 3, size: int = 32, augment: bool = False, pad: int = 4
) -> ImageDataset:
    shape = (rows, channels, size, size)
    images = torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    mean, std = (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels]
    return ImageDataset(images, torch.arange(rows), mean, std, augment, pad)


def crop_naively(image: np.ndarray, down: int, right: int, mirror: bool, pad: int) -> np.ndarray:
    """Pixel by pixel: what is outside the image is 0."""
    channels, height, width = image.shape
    out = np.zeros_like(image)
    for channel in range(channels):
        for y in range(height):
            for x in range(width):
                from_y, from_x = y + down - pad, x + right - pad
                if 0 <= from_y < height and 0 <= from_x < width:
                    out[channel, y, width - 1 - x if mirror else x] = image[channel, from_y, from_x]
    return out


@pytest.mark.parametrize(("size", "channels", "pad"), [(32, 3, 4), (8, 1, 1), (5, 3, 0), (4, 2, 6)])
def test_augmentation_against_pixel_loops(size, channels, pad):
    images = random_split(6, channels, size).images
    torch.manual_seed(3)
    augmented = crop_and_mirror(images, pad)
    torch.manual_seed(3)
    down, right = torch.randint(2 * pad + 1, (6,)), torch.randint(2 * pad + 1, (6,))
    mirror = torch.rand(6) < 0.5
    for row in range(6):
        values = int(down[row]), int(right[row]), bool(mirror[row])
        expected = crop_naively(images[row].numpy(), *values, pad)
        assert np.array_equal(augmented[row].numpy(), expected)


def test_augmentation_by_hand(monkeypatch):
    image = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3)
    draws = iter([torch.tensor([0]), torch.tensor([2])])  # one down, one to the left
    monkeypatch.setattr(torch, "randint", lambda *_: next(draws))
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor([0.4]))  # mirrored
    assert crop_and_mirror(image, 1).tolist() == [[[[0, 0, 0], [0, 3, 2], [0, 6, 5]]]]


def test_every_shift_and_both_sides_occur():
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 4] = 1
    torch.manual_seed(0)
    spots = crop_and_mirror(image.expand(5000, -1, -1, -1), 4)[:, 0].nonzero()
    counts = torch.zeros(9, 9).index_put_((spots[:, 1], spots[:, 2]), torch.tensor(1.0), True)
    assert len(spots) == 5000
    assert counts.min() > 30  # 62 are expected in each of the 81 places
    left = torch.zeros(1, 1, 1, 2, dtype=torch.uint8)
    left[..., 0] = 1
    stays = crop_and_mirror(left.expand(4000, -1, -1, -1), 0)[:, 0, 0, 0].float().mean()
    assert 0.47 < stays < 0.53


def test_normalisation_by_hand():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.1, 0.0), (0.5, 0.2, 0.25)))
    values = normalise(images, mean, std).flatten()
    assert values.tolist() == pytest.approx([-1.0, 0.5, 4.0], abs=1e-6)
    assert values.dtype == torch.float32


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("normalisation", [None, "imagenet"])
def test_load_normalises_as_asked(name, normalisation, tmp_path):
    write_parquet(tmp_path, name)
    images = load(name, tmp_path, augment=False, normalisation=normalisation)
    assert (images.mean, images.std) == NORMALISATIONS[normalisation or name]
    tensors = torch.from_numpy(pixels(5)).permute(0, 3, 1, 2) / 255
    expected = torchvision.transforms.Normalize(images.mean, images.std)(tensors)
    torch.testing.assert_close(images.train.__getitems__([0, 1, 2, 3, 4])[0], expected)


# Images as a split


def test_batches_are_rows_put_together():
    split = random_split(7)
    images, labels = split.__getitems__([5, 0, 3])
    assert labels.tolist() == [5, 0, 3]
    for place, row in enumerate([5, 0, 3]):
        assert torch.equal(split[row][0], images[place])
        assert split[row][1] == row


@pytest.mark.parametrize("augment", [False, True])
def test_data_loader(augment):
    split = random_split(10, augment=augment)
    batches = list(DataLoader(split, batch_size=4, collate_fn=split.collate))
    assert [tuple(images.shape) for images, _ in batches] == [(4, 3, 32, 32)] * 2 + [(2, 3, 32, 32)]
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(10))


def test_single_rows_are_collated():
    split = random_split(6)
    both = ConcatDataset([split, split])  # this has no batched fetch
    batches = list(DataLoader(both, batch_size=12, collate_fn=split.collate))
    assert torch.equal(batches[0][0][:6], split.__getitems__(range(6))[0])
    assert batches[0][1].tolist() == [*range(6), *range(6)]


def test_a_restored_random_state_repeats_the_batches():
    split = random_split(8, augment=True)
    torch.manual_seed(1)
    split.__getitems__([0, 1])
    state = torch.get_rng_state()
    first = split.__getitems__([2, 3, 4])[0]
    assert not torch.equal(first, split.__getitems__([2, 3, 4])[0])
    torch.set_rng_state(state)
    assert torch.equal(first, split.__getitems__([2, 3, 4])[0])


def test_without_augmentation_no_random_number_is_drawn():
    state = torch.get_rng_state()
    random_split(4).__getitems__([0, 1])
    assert torch.equal(state, torch.get_rng_state())


def test_images_are_not_changed_by_reading():
    split = random_split(4, augment=True)
    before = split.images.clone()
    split.__getitems__([0, 1, 2, 3])
    assert torch.equal(before, split.images)


def test_subset_keeps_everything():
    split = random_split(6, augment=True, pad=2)
    part = split.subset([4, 1])
    assert torch.equal(part.images, split.images[[4, 1]])
    assert part.labels.tolist() == [4, 1]
    assert (part.augment, part.pad, part.mean, part.std) == (True, 2, split.mean, split.std)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 4, 4)}, "must be uint8"),
        ({"images": torch.zeros(2, 4, 4, dtype=torch.uint8)}, r"\[N, C, H, W\]"),
        ({"labels": torch.zeros(3)}, r"2 images need as many labels, got \(3,\)"),
        ({"mean": (0.5,)}, "one number for each of 3 channels"),
        ({"std": (0.5, 0.0, 0.5)}, "std must be above 0"),
        ({"pad": -1}, "pad=-1"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    good = {
        "images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        "labels": torch.zeros(2, dtype=torch.int64),
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
    }
    with pytest.raises(ValueError, match=message):
        ImageDataset(**good | change)


# Digits


def test_digits():
    images = digits()
    assert (len(images.train), len(images.test)) == (1438, 359)
    assert images.train.images.shape[1:] == (1, 8, 8)
    assert images.labels == tuple("0123456789")
    assert not images.train.augment
    shares = images.test.labels.bincount() / images.train.labels.bincount()
    assert (shares - 0.25).abs().max() < 0.01
    everything = images.train.__getitems__(range(1438))[0]
    assert abs(everything.mean()) < 1e-3
    assert abs(everything.std() - 1) < 1e-3


def test_digits_are_always_the_same():
    torch.manual_seed(1)
    first = digits().test
    torch.manual_seed(2)
    assert torch.equal(first.images, digits().test.images)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    images = digits()
    pixels_found = torch.cat([images.train.images, images.test.images]).flatten(1).numpy()
    labels = torch.cat([images.train.labels, images.test.labels]).numpy()
    found = sorted(map(tuple, np.c_[np.rint(pixels_found / 255 * 16), labels].tolist()))
    data = load_digits()
    assert found == sorted(map(tuple, np.c_[data.data, data.target].tolist()))


# Real data


@needs_data
@pytest.mark.parametrize(("name", "first"), [("cifar10", "airplane"), ("cifar100", "apple")])
def test_real_data(name, first, monkeypatch):
    """All labels; of the images a twentieth, drawn at random, which are dear to decode."""
    labels, generator, share = {}, np.random.default_rng(0), 20

    def sampled(file, columns):
        table = read_shard(file, columns)
        split = file.name.partition("-")[0]
        labels[split] = np.append(labels.get(split, []), table[columns[1]].to_numpy())
        drawn = generator.choice(len(table), len(table) // share, replace=False)
        return table.take(np.sort(drawn))

    monkeypatch.setattr(cifar, "read_shard", sampled)
    images = load(name, DATA)
    classes = len(images.labels)
    for split, rows in (("train", 50_000), ("test", 10_000)):
        counts = np.bincount(labels[split].astype(int), minlength=classes)
        assert counts.tolist() == [rows // classes] * classes
    assert (len(images.train), len(images.test)) == (50_000 // share, 10_000 // share)
    assert images.labels[0] == first
    values_NCP = images.train.images.flatten(2).double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64) for v in (images.mean, images.std))
    for power, wanted in ((1, mean), (2, std**2 + mean**2)):
        moments_NC = (values_NCP**power).mean(2)
        error_C = moments_NC.std(0) / len(moments_NC) ** 0.5
        assert ((moments_NC.mean(0) - wanted).abs() < 3 * error_C).all()
        assert (error_C < 0.004).all()
