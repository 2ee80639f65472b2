"""Images of a user's own are read as the network says that it read its own."""

import json
import shutil

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from helpers import command
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.models import ResNet18_Weights
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BitImageProcessor,
    ConvNextImageProcessor,
    ConvNextV2Config,
    ConvNextV2ForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    MobileViTImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

import multiexit as mx
from multiexit.data import image_files, load
from multiexit.data.own import image_sets
from multiexit_runner import pictures

COLOURS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
SHA = "a" * 40
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CLASSES = {"id2label": {0: "b", 1: "a"}, "label2id": {"b": 0, "a": 1}}


def squashed():
    config = ViTConfig(image_size=24, patch_size=8, intermediate_size=32, **SIZES, **CLASSES)
    processor = ViTImageProcessor(size={"height": 24, "width": 24}, resample=2, **COLOURS)
    return ViTForImageClassification(config), processor


def cropped():
    config = Dinov2Config(image_size=28, patch_size=7, mlp_ratio=2, **SIZES, **CLASSES)
    crop = {"size": {"shortest_edge": 35}, "crop_size": {"height": 28, "width": 28}}
    return Dinov2ForImageClassification(config), BitImageProcessor(resample=3, **crop, **COLOURS)


def a_part():
    config = ConvNextV2Config(hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 1, 1], **CLASSES)
    size = {"size": {"shortest_edge": 56}, "crop_pct": 0.8}
    return ConvNextV2ForImageClassification(config), ConvNextImageProcessor(**size, **COLOURS)


def unscaled():
    network, processor = squashed()
    processor.do_rescale, processor.image_std = False, [50.0, 60.0, 70.0]
    processor.image_mean = [120.0, 110.0, 100.0]
    return network, processor


def saved(made, folder):
    """A network whose answers hang on every pixel, in a folder with its processor."""
    torch.manual_seed(0)
    network, processor = made()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Images of two classes, high and wide, some of them smaller than networks read."""
    folder, draw = tmp_path_factory.mktemp("pets"), np.random.default_rng(0)
    for number in range(20):
        place = folder / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        sides = draw.integers(20, 90, 2)
        pixels = draw.integers(0, 256, (*sides, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def trained(pets, backbone, output, *words):
    return command("train", "--data", pets, "--backbone", backbone, "--output", output,
                   *("--max-steps", 1, "--lr", 1e-12, "--batch-size", 4, *words))  # fmt: skip


@pytest.mark.parametrize("made", [squashed, cropped, a_part, unscaled])
def test_the_last_exit_answers_as_the_network_does_after_its_own_processor(made, pets, tmp_path):
    """Classes in the folders' order too: the network calls its first class b."""
    folder = saved(made, tmp_path / "network")
    ended = trained(pets, folder, tmp_path / "run")
    assert ended.code == 0, ended.err
    assert f"images are read as {folder} says" in ended.err
    assert "taken to be the same" not in ended.err
    network = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    model = mx.MultiExitModel.from_pretrained(tmp_path / "run" / "model")
    classify = mx.Classifier(model, policy=mx.FixedExit(model.num_exits - 1))
    for path in sorted(pets.rglob("*.png")):
        pixels = processor(Image.open(path), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            wanted = network(pixels).logits.softmax(-1)[0]
        scores = classify(str(path))["scores"]
        assert [scores["b"], scores["a"]] == pytest.approx(wanted.tolist(), abs=1e-4)
        without_torch = pictures.read(str(path), model.preprocessing)
        assert np.abs(without_torch - pixels[0].numpy()).max() < 1e-4


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("resnet10t", {}),
        ("vit_tiny_patch16_384", {}),
        ("resnet10t", {"crop_mode": "squash", "interpolation": "bilinear", "crop_pct": 0.9}),
        ("resnet10t", {"mean": (0.1, 0.2, 0.3), "input_size": (3, 61, 61)}),
    ],
)
def test_pixels_are_those_of_timms_own_transform(name, changes, pets):
    network = timm.create_model(name)
    network.pretrained_cfg = {**network.pretrained_cfg, **changes}
    own = create_transform(**resolve_data_config({}, model=network), is_training=False)
    how = mx.image_preparation(network)
    if not changes:
        assert how == mx.image_preparation(f"timm:{name}")
    for path in sorted(pets.rglob("*.png"))[:6]:
        torch.testing.assert_close(image_files.read(path, how), own(Image.open(path)))


def test_torchvision_says_it_of_its_weights(pets):
    own = ResNet18_Weights.DEFAULT.transforms()
    how = mx.image_preparation("torchvision:resnet18")
    for path in sorted(pets.rglob("*.png"))[:6]:
        torch.testing.assert_close(image_files.read(path, how), own(Image.open(path)))
    assert mx.image_preparation("torchvision:resnet18", pretrained=False) is None
    assert mx.image_preparation("cifar-resnet-20") is None


def test_what_is_typed_goes_before_and_nothing_said_is_imagenets(pets, tmp_path):
    folder = saved(cropped, tmp_path / "network")
    own = mx.image_preparation(str(folder))
    assert (own["shape"], own["resize"]) == ([3, 28, 28], 35)
    how = load(pets, size=56, preparation=own, notes=lambda note: None).preprocessing
    assert (how["shape"], how["resize"], how["mean"]) == ([3, 56, 56], 70, [0.5, 0.4, 0.3])
    ended = trained(pets, folder, tmp_path / "run", "--normalisation", "imagenet")
    assert "images are read as ImageNet's: 28 × 28" in ended.err
    model = mx.MultiExitModel.from_pretrained(tmp_path / "run" / "model")
    assert model.preprocessing["mean"] == list(image_sets.MEAN)
    (folder / "preprocessor_config.json").unlink()
    assert mx.image_preparation(str(folder)) == {"shape": [3, 28, 28]}
    ended = trained(pets, folder, tmp_path / "other", "--normalisation", "own")
    assert ended.code == 2
    assert "imagenet" in ended.err


def test_a_processor_that_cannot_be_fetched_is_not_taken_for_none(tmp_path, monkeypatch):
    """The hub's cache knows what the hub lacks, by `.no_exist`, once it was asked."""
    folder, cache = saved(squashed, tmp_path / "network"), tmp_path / "hub" / "models--me--vit"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot, lacking = cache / "snapshots" / SHA, cache / ".no_exist" / SHA
    for place in (snapshot, lacking, cache / "refs"):
        place.mkdir(parents=True)
    (cache / "refs" / "main").write_text(SHA)
    shutil.copy(folder / "config.json", snapshot)
    (lacking / "processor_config.json").touch()
    with pytest.raises(ValueError, match=r"whether 'me/vit' has .* --normalisation imagenet"):
        mx.image_preparation("me/vit")
    (lacking / "preprocessor_config.json").touch()
    assert mx.image_preparation("me/vit") == {"shape": [3, 24, 24]}
    (lacking / "preprocessor_config.json").unlink()
    shutil.copy(folder / "preprocessor_config.json", snapshot)
    assert mx.image_preparation("me/vit") == mx.image_preparation(str(folder))


def bordered():
    network = timm.create_model("resnet10t")
    network.pretrained_cfg = {**network.pretrained_cfg, "crop_mode": "border"}
    return network


def test_what_no_description_says_is_refused_before_rows_are_read(pets, tmp_path):
    crop = {"size": {"shortest_edge": 35}, "crop_size": {"height": 28, "width": 28}}
    flips = MobileViTImageProcessor(**crop)
    folder = saved(lambda: (cropped()[0], flips), tmp_path / "network")
    ended = trained(pets, folder, tmp_path / "run")
    assert ended.code == 2
    assert "do_flip_channel_order" in ended.err
    assert "--normalisation imagenet" in ended.err
    assert "select the epoch" not in ended.err
    assert trained(pets, folder, tmp_path / "run", "--normalisation", "imagenet").code == 0
    with pytest.raises(ValueError, match="ResNet reads images in a way that"):
        mx.image_preparation(bordered())
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings |= {"do_center_crop": False, "do_flip_channel_order": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="several sizes"):
        mx.image_preparation(str(folder))
    ended = trained(pets, tmp_path / "nothing", tmp_path / "other")
    assert (ended.code, "no model" in ended.err) == (2, True)
