"""Models of timm networks, cut for good behind an exit."""

import subprocess
import sys
import warnings

import pytest
import timm
import torch
from torch import nn

import multiexit as mx
from multiexit.model.truncation import Truncated

VIT = {"img_size": 32, "depth": 3, "embed_dim": 24, "num_heads": 2, "num_classes": 7}
TINY = "vit_tiny_patch16_224"
SMALL = {"layers": (2, 1, 1, 1), "channels": (8, 8, 8, 16), "input_shape": (3, 64, 64)}


def with_exits(name, classes=7, head=None, **options):
    """A model with temperatures, and no last layer of zeros."""
    torch.manual_seed(0)
    backbone = mx.wrap(f"timm:{name}", **options)
    model = mx.MultiExitModel(backbone, classes, head=head).eval()
    model.temperature_M.copy_(1 + torch.rand(model.num_exits))
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p)
    return model


def rows(model):
    return torch.randn(3, *model.example_inputs()["x"].shape[1:])


def cut(model, exit):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        static = mx.truncate(model, exit)
    return static, rows(model)


def of_an_instance():
    options = {"layers": (1, 1, 1, 2), "channels": (8, 8, 8, 16), "in_chans": 1}
    network = timm.create_model("resnet26t", **options)
    return mx.MultiExitModel(mx.wrap(network, input_shape=(1, 64, 64)), 3).eval()


MODELS = {
    "vit": lambda: with_exits(TINY, **VIT),
    "vit, avg": lambda: with_exits(TINY, **VIT, global_pool="avg"),
    "vit, map": lambda: with_exits(TINY, **VIT, global_pool="map"),
    "vit, other classes": lambda: with_exits(TINY, 3, **VIT),
    "vit with registers": lambda: with_exits(TINY, **VIT, reg_tokens=2, init_values=0.1),
    "pre-norm vit": lambda: with_exits("vit_base_patch16_clip_224", **VIT),
    "resnet of blocks of two kinds": lambda: with_exits("test_resnet", num_classes=7),
    "resnet": lambda: with_exits("resnet18", 3, **SMALL),
    "resnet of an instance": lambda: of_an_instance(),
}


@pytest.mark.parametrize("kind", MODELS)
def test_exits_are_cut_into_the_network_s_own_class(kind, tmp_path):
    model = MODELS[kind]()
    is_vit = "vit" in kind
    places = {p.data_ptr() for p in model.parameters()}
    for exit in range(1, model.num_exits):
        static, x = cut(model, exit)
        assert type(static).__name__ == ("VisionTransformer" if is_vit else "ResNet")
        wanted_BC = model.predict(mx.FixedExit(exit), x).logits_BC
        with torch.no_grad():
            torch.testing.assert_close(static(x), wanted_BC)
        copied = [p for p in static.parameters() if p.data_ptr() not in places]
        assert sum(p.numel() for p in copied) <= sum(
            p.numel() for p in model.heads[exit].parameters()
        )
        folder = tmp_path / str(exit)
        timm.models.save_for_hf(
            static, str(folder), safe_serialization=True, model_args=static._model_args
        )
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert again.state_dict().keys() == static.state_dict().keys()
        with torch.no_grad():
            assert torch.equal(again(x), static(x))


LOADED = """
import sys
import timm
import torch

folder, rows, wanted = sys.argv[1:]
network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
with torch.no_grad():
    assert torch.equal(network(torch.load(rows)), torch.load(wanted))
assert "multiexit" not in sys.modules
"""


def test_timm_alone_loads_it_in_another_process(tmp_path):
    static, x = cut(with_exits(TINY, **VIT), 1)
    timm.models.save_for_hf(static, str(tmp_path / "cut"), safe_serialization=True)
    torch.save(x, tmp_path / "rows")
    with torch.no_grad():
        torch.save(static(x), tmp_path / "logits")
    paths = [str(tmp_path / name) for name in ("cut", "rows", "logits")]
    subprocess.run([sys.executable, "-c", LOADED, *paths], check=True)


OWN_HEADS = {
    "convnext": lambda: with_exits("test_convnext", num_classes=7),
    "efficientnet": lambda: with_exits("test_efficientnet", num_classes=7),
    "mambaout": lambda: with_exits("test_mambaout", num_classes=7),
}


@pytest.mark.parametrize("kind", OWN_HEADS)
def test_the_last_exit_of_any_network_is_cut_if_it_is_its_own_head(kind, tmp_path):
    model = OWN_HEADS[kind]()
    static, x = cut(model, model.num_exits - 1)
    wanted_BC = model.predict(mx.FixedExit(model.num_exits - 1), x).logits_BC
    with torch.no_grad():
        torch.testing.assert_close(static(x), wanted_BC)
    timm.models.save_for_hf(static, str(tmp_path), safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(x), static(x))
    with pytest.warns(UserWarning, match="its own head, after the last stage, can be cut out"):
        assert type(mx.truncate(model, 0)) is Truncated


def distilled():
    return with_exits("deit_tiny_distilled_patch16_224", **VIT)


NO_CLASS = {
    "has more layers than one": (distilled, 0),
    "can't be divided by a temperature": (distilled, 2),
    "timm can't make": (MODELS["resnet"], 0),
    "no class of transformers or timm has a head like": (
        lambda: with_exits(TINY, head="attention", **VIT),
        0,
    ),
    "no description as a network of timm": (lambda: edited(), 0),
}


def edited():
    network = timm.create_model(TINY, **VIT)
    network.blocks[1].mlp.act = nn.ReLU()
    return mx.MultiExitModel(mx.wrap(network), 7).eval()


@pytest.mark.parametrize("reason", NO_CLASS)
def test_an_exit_that_fits_no_class_is_a_plain_module_with_a_warning(reason):
    make, exit = NO_CLASS[reason]
    model = make()
    with pytest.warns(UserWarning, match=f"exit {exit} fits no class of timm: .*{reason}"):
        static = mx.truncate(model, exit)
    assert type(static) is Truncated
    x = rows(model)
    with torch.no_grad():
        assert torch.equal(static(x), model.predict(mx.FixedExit(exit), x).logits_BC)
