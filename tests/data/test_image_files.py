"""Image files are prepared as training prepares them, or refused by name."""

import contextlib
import itertools
import os
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import multiexit as mx
from multiexit.data import cifar, digits, image_files
from multiexit.data.images import ImageDataset, Images

GREY = {"shape": [1, 28, 28], "mean": [0.5], "std": [0.5]}
COLOUR = {"shape": [3, 32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
RAMP = (np.linspace(0, 255, 28)[None] * np.ones((28, 1))).astype(np.uint8)


def colours(height=32, width=32, channels=3, seed=0):
    """Random smooth colours, uint8 [H, W, C]."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 7, channels), dtype=np.uint8)
    bands = [Image.fromarray(small[..., c]).resize((width, height)) for c in range(channels)]
    return np.stack([np.asarray(band) for band in bands], -1)


def read(image, how, place, name="picture.png", **more):
    image.save(place / name, **more)
    return image_files.read(place / name, how)


@pytest.fixture
def grey(tmp_path):
    """The ramp as 8 bits are read."""
    return read(Image.fromarray(RAMP), GREY, tmp_path, "8.png")


@pytest.fixture
def colour(tmp_path):
    return read(Image.fromarray(colours()), COLOUR, tmp_path, "rgb.png")


# The same as the field's own transforms


@pytest.mark.parametrize("by", image_files.INTERPOLATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_what_torchvision_gives_for_a_picture(by, channels, tmp_path):
    """The same pixels; to tensors of 0..1 they are turned by another product."""
    base = COLOUR if channels == 3 else {**GREY, "shape": [1, 32, 32]}
    sizes = [(50, 70), (70, 50), (41, 41), (300, 45), (32, 32), (20, 23)]
    for size, resize in itertools.product(sizes, (36, 32, [40, 33])):
        how = {**base, "resize": resize, "interpolation": by}
        picture = Image.fromarray(colours(*size, channels).squeeze())
        steps = [
            v2.Resize(resize, getattr(v2.InterpolationMode, by.upper())),
            v2.CenterCrop(32),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(how["mean"], how["std"]),
        ]
        wanted = v2.Compose(steps)(picture)
        assert torch.allclose(read(picture, how, tmp_path), wanted, atol=2e-6)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("by", ["bilinear", "bicubic"])
def test_tensors_are_resized_alike_to_a_level_or_two(by, antialias, tmp_path):
    how = {**COLOUR, "mean": [0.0] * 3, "std": [1.0] * 3}
    how |= {"resize": 36, "interpolation": by, "antialias": antialias}
    pixels = colours(90, 75)
    mode = getattr(v2.InterpolationMode, by.upper())
    for x_CHW in (torch.from_numpy(pixels), torch.from_numpy(pixels / np.float32(255))):
        steps = [v2.Resize(36, mode, antialias=antialias), v2.CenterCrop(32)]
        wanted = v2.functional.to_dtype(
            v2.Compose(steps)(x_CHW.permute(2, 0, 1)), torch.float32, scale=True
        )
        got = read(Image.fromarray(pixels), how, tmp_path)
        assert (got - wanted.clamp(0, 1)).abs().max() <= 1.5 / 255


def test_it_is_what_timm_gives_for_a_picture(tmp_path):
    from timm.data import create_transform

    how = {**COLOUR, "shape": [3, 56, 56], "resize": 64, "interpolation": "bicubic"}
    wanted = create_transform(
        (3, 56, 56), interpolation="bicubic", crop_pct=0.875, mean=how["mean"], std=how["std"]
    )
    picture = Image.fromarray(colours(99, 80))
    assert torch.allclose(read(picture, how, tmp_path), wanted(picture), atol=2e-6)


@pytest.mark.parametrize("name", ["digits", "cifar"])
def test_a_sets_own_images_come_out_as_in_training(name, tmp_path):
    if name == "digits":
        images = digits.load()
    else:
        pixels = torch.from_numpy(colours(32, 32)).permute(2, 0, 1)[None]
        data = ImageDataset(pixels, torch.zeros(1).long(), *cifar.NORMALISATIONS["cifar10"])
        images = Images(data, data, ("cat",), data.mean, data.std)
    for row in range(min(5, len(images.test))):
        picture = Image.fromarray(images.test.images[row].permute(1, 2, 0).squeeze().numpy())
        got = read(picture, images.preprocessing, tmp_path)
        assert torch.equal(got, images.test[row][0])


def test_older_descriptions_are_resized_as_they_were(tmp_path):
    picture = Image.fromarray(colours(50, 90))
    old = np.array(picture.resize((32, 32)), dtype=np.float32).transpose(2, 0, 1) / 255
    mean, std = (np.array(COLOUR[key], dtype=np.float32)[:, None, None] for key in ("mean", "std"))
    assert torch.allclose(read(picture, COLOUR, tmp_path), torch.from_numpy((old - mean) / std))


# Kinds of pictures


def test_sixteen_bits_are_the_same_picture(grey, tmp_path):
    sixteen = RAMP.astype(np.uint16) * 257
    for name in ("16.png", "16.tiff"):
        assert torch.equal(read(Image.fromarray(sixteen), GREY, tmp_path, name), grey)
    (tmp_path / "16.pgm").write_bytes(b"P5 28 28 65535\n" + sixteen.astype(">u2").tobytes())
    assert torch.equal(image_files.read(tmp_path / "16.pgm", GREY), grey)
    big = np.kron(sixteen, np.ones((3, 2), np.uint16))
    small = (big // 257).astype(np.uint8)
    assert torch.equal(
        read(Image.fromarray(big), GREY, tmp_path), read(Image.fromarray(small), GREY, tmp_path)
    )


def test_floats_are_zero_to_one_or_refused(grey, tmp_path):
    unit = Image.fromarray((RAMP / 255).astype(np.float32))
    assert torch.equal(read(unit, GREY, tmp_path, "f.tiff"), grey)
    for wrong in (RAMP.astype(np.float32), RAMP / np.float32(255) - 0.1, RAMP * np.float32("nan")):
        with pytest.raises(ValueError, match=r"f\.tiff as an image: floats must lie in 0\.\.1"):
            read(Image.fromarray(wrong), GREY, tmp_path, "f.tiff")
    with pytest.raises(ValueError, match="with a sign"):
        read(Image.fromarray(RAMP.astype(np.int32)), GREY, tmp_path, "i.tiff")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["turned.png", "turned.jpg", "turned.tiff"])
def test_pictures_are_turned_upright(orientation, name, tmp_path, colour):
    turns = [None, None, 0, 3, 1, 5, 2, 6, 4]  # Pillow's Transpose, to be undone
    stored = Image.fromarray(colours())
    if turns[orientation] is not None:
        stored = stored.transpose(Image.Transpose(turns[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    more = {"quality": 100, "subsampling": 0} if name.endswith("jpg") else {}
    got = read(stored, COLOUR, tmp_path, name, exif=exif, **more)
    assert (got - colour).abs().mean() < (0.03 if more else 1e-9)


def test_what_is_transparent_is_white(tmp_path):
    clear = colours(channels=4)
    clear[..., 3] = 0
    clear[8:, :, 3] = 255
    white = np.where(clear[..., 3:] == 0, 255, clear[..., :3]).astype(np.uint8)
    wanted = read(Image.fromarray(white), COLOUR, tmp_path)
    for name in ("a.png", "a.tiff", "a.webp"):
        lossless = {"lossless": True, "exact": True} if name.endswith("webp") else {}
        assert torch.equal(read(Image.fromarray(clear), COLOUR, tmp_path, name, **lossless), wanted)
    half = Image.new("LA", (28, 28), (0, 128))
    assert read(half, {**GREY, "mean": [0.0], "std": [1.0]}, tmp_path).mean() == pytest.approx(
        127 / 255
    )
    coded = Image.new("L", (28, 28), 7)
    assert (read(coded, GREY, tmp_path, transparency=7) == 1).all()
    assert (read(coded, GREY, tmp_path) < 0).all()
    sixteen = Image.fromarray(RAMP.astype(np.uint16) * 257)
    assert (read(sixteen, GREY, tmp_path, transparency=0)[:, :, 0] == 1).all()


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize("name", ["p.png", "p.gif"])
def test_palettes_are_their_colours(transparent, name, tmp_path):
    few = Image.fromarray(colours()).quantize(16)
    pixels = np.array(few.convert("RGB"))
    if transparent:
        pixels[np.array(few) == 3] = 255
    wanted = read(Image.fromarray(pixels), COLOUR, tmp_path)
    more = {"transparency": 3} if transparent else {}
    assert torch.equal(read(few, COLOUR, tmp_path, name, **more), wanted)


def test_other_colour_spaces(colour, tmp_path):
    picture = Image.fromarray(colours())
    for mode, name in (
        ("CMYK", "c.tiff"),
        ("CMYK", "c.jpg"),
        ("YCbCr", "y.tiff"),
        ("RGBX", "x.tiff"),
    ):
        more = {"quality": 100, "subsampling": 0} if name.endswith("jpg") else {}
        got = read(picture.convert(mode), COLOUR, tmp_path, name, **more)
        assert (got - colour).abs().mean() < 0.03, mode
    bits = Image.fromarray(RAMP > 127)
    assert read(bits, GREY, tmp_path, "1.png").unique().tolist() == [-1, 1]
    assert read(Image.fromarray(RAMP), {**COLOUR, "shape": [3, 28, 28]}, tmp_path).shape[0] == 3
    grey = read(picture, {**GREY, "shape": [1, 32, 32], "mean": [0.0], "std": [1.0]}, tmp_path)
    luma = colours() @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey[0].numpy() * 255 - luma).max() < 1


# What is no picture


def png_header(width, height):
    """A PNG whose header alone is right."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def pages(place, name):
    frames = [Image.fromarray(colours(seed=seed)) for seed in range(3)]
    frames[0].save(place / name, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("make", "naming"),
    [
        (lambda p: None, "No such file"),
        (lambda p: p.mkdir(), "no regular file"),
        (lambda p: os.mkfifo(p), "no regular file"),
        (lambda p: p.symlink_to("/dev/zero"), "no regular file"),
        (lambda p: p.write_bytes(b""), "cannot identify"),
        (lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "identify"),
        (lambda p: p.write_bytes(png_header(100_000, 100_000)), "pixels"),
        (lambda p: p.write_bytes(png_header(2**31 - 1, 2**31 - 1)), "pixels"),
        (lambda p: p.write_bytes(png_header(20_000_000, 1)), "strip"),
        (lambda p: p.write_bytes(png_header(0, 5)), "as an image"),
        (lambda p: p.write_bytes(png_header(40, 40)), "truncated"),
        (lambda p: pages(p.parent, p.name), "3 pictures"),
    ],
)
def test_what_is_no_picture_is_named(make, naming, tmp_path):
    how = {**COLOUR, "resize": 32}
    for name in ("picture.gif", "picture.tiff") if naming == "3 pictures" else ("picture.png",):
        make(tmp_path / name)
        with pytest.raises(ValueError, match=f"(?s)can't read .*{name} as an image: ") as raised:
            image_files.read(tmp_path / name, how)
        assert naming in str(raised.value)


@pytest.mark.parametrize("name", ["b.png", "b.jpg", "b.gif", "b.bmp", "b.tiff", "b.webp", "b.ppm"])
def test_damaged_files_are_refused_or_read(name, tmp_path):
    path = tmp_path / name
    Image.fromarray(colours()).save(path)
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(draw.randint(1, 8)):
            broken[draw.randrange(min(len(broken), 200))] = draw.randrange(256)
        path.write_bytes(broken[: draw.choice([len(broken), draw.randrange(len(broken))])])
        with contextlib.suppress(ValueError):  # nothing else
            assert image_files.read(path, COLOUR).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("changes", "naming"),
    [
        ({"shape": [4, 32, 32]}, "shape"),
        ({"shape": [3, 0, 32]}, "shape"),
        ({"shape": [3, 10**12, 32]}, "shape"),
        ({"shape": "3x32x32"}, "shape"),
        ({"resize": 20}, "at least 32 × 32"),
        ({"resize": [40, 31]}, "at least 32 × 32"),
        ({"resize": 40.5}, "resize"),
        ({"resize": True}, "resize"),
        ({"mean": [0.5]}, "3 channels"),
        ({"std": [0.5, 0.0, 0.5]}, "std"),
        ({"mean": [0.5, float("nan"), 0.5]}, "mean"),
        ({"interpolation": "bicubical"}, "interpolation"),
        ({"antialias": "yes"}, "antialias"),
        ({"antialias": False, "interpolation": "lanczos"}, "antialias"),
    ],
)
def test_a_wrong_description_is_refused(changes, naming):
    with pytest.raises(ValueError, match=naming):
        image_files.check({**COLOUR, **changes})
    with pytest.raises(ValueError, match="lacks"):
        image_files.check({"shape": [3, 32, 32]})


# What it costs


def test_macs_are_counted_at_the_size_trained_on():
    import torchvision

    net = torchvision.models.resnet18()
    small = mx.MultiExitModel(mx.wrap(net, input_shape=(3, 64, 64)), 3, [7])
    model = mx.MultiExitModel(mx.wrap(net), 3, [7])
    at_224 = model.cost()
    rows = [(torch.randn(2, 3, 64, 64), torch.tensor([0, 2]))]
    assert mx.collect(model, rows).cost == small.cost() != at_224
    model.preprocessing = {"kind": "image", "shape": [3, 64, 64]}
    assert model.cost() == small.cost()
