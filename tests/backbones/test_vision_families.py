"""Vision models of libraries: they answer as their library says, and come back as the same network.

One table of families and options. For each: the last exit gives the library's own logits to the
last bit, and again after the model was saved and loaded.
"""

import copy

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import multiexit as mx
from multiexit.backbones import rebuild, specs
from multiexit.backbones.same import difference, rebuild_difference
from multiexit.backbones.vision import timm_families

VIT = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 7}
TINY = "vit_tiny_patch16_224"
CONVNEXT = {"num_classes": 7, "depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20)}
TV_VIT = (32, 8, 2, 2, 24, 48)


def resnet_of_torchvision(**options):
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=7, **options)


def vit_of_torchvision(**options):
    made = torchvision.models.VisionTransformer(*TV_VIT, num_classes=7, **options)
    nn.init.normal_(made.heads[-1].weight)  # zeros when it is made
    return made


def of_timm(name, **options):
    return lambda: timm.create_model(name, **options)


FAMILIES = {
    "vit": of_timm(TINY, **VIT),
    "vit of 3 heads": of_timm(TINY, **{**VIT, "num_heads": 3}),
    "vit of other patches": of_timm(TINY, **VIT, patch_size=8),
    "vit with registers": of_timm(TINY, **VIT, reg_tokens=4),
    "vit, no_embed_class": of_timm(TINY, **VIT, no_embed_class=True),
    "vit, dynamic_img_size": of_timm(TINY, **VIT, dynamic_img_size=True),
    "vit, avg": of_timm(TINY, **VIT, global_pool="avg"),
    "vit, avg without fc_norm": of_timm(TINY, **VIT, global_pool="avg", fc_norm=False),
    "vit, avg without class token": of_timm(TINY, **VIT, global_pool="avg", class_token=False),
    "vit, map": of_timm(TINY, **VIT, global_pool="map"),
    "vit, max": of_timm(TINY, **VIT, global_pool="max"),
    "vit of many options": of_timm(
        TINY, **VIT, init_values=0.1, qkv_bias=False, qk_norm=True, drop_path_rate=0.1,
        drop_rate=0.2, pos_drop_rate=0.1, attn_drop_rate=0.1, in_chans=1, mlp_ratio=2,
    ),
    "vit by its class": lambda: timm.models.VisionTransformer(**VIT, patch_size=16),
    "pre-norm vit": of_timm("vit_base_patch16_clip_224", **VIT),
    "vit of another test": of_timm("test_vit2", num_classes=7),
    "distilled deit": of_timm("deit_tiny_distilled_patch16_224", **VIT),
    "resnet": of_timm("test_resnet", num_classes=7),
    "resnet, max": of_timm("test_resnet", num_classes=7, global_pool="max"),
    "resnet, catavgmax": of_timm("test_resnet", num_classes=7, global_pool="catavgmax"),
    "resnet of many options": of_timm(
        "test_resnet", num_classes=7, output_stride=8, in_chans=1, drop_path_rate=0.2, drop_rate=0.1
    ),
    "convnext": of_timm("test_convnext", **CONVNEXT),
    "convnext v2": of_timm("test_convnext2", **CONVNEXT),
    "convnext with a hidden layer": of_timm("test_convnext", **CONVNEXT, head_hidden_size=5),
    "convnext, norm first": of_timm("test_convnext", **CONVNEXT, head_norm_first=True, in_chans=1),
    "convnext of many options": of_timm(
        "test_convnext", **CONVNEXT, output_stride=16, drop_path_rate=0.1, drop_rate=0.1,
        global_pool="max", ls_init_value=None,
    ),
    "torchvision resnet": resnet_of_torchvision,
    "torchvision vit": vit_of_torchvision,
    "torchvision vit with a hidden layer": lambda: vit_of_torchvision(
        representation_size=6, dropout=0.1
    ),
}  # fmt: skip


def rows(backbone, number=2):
    return torch.randn(number, *backbone.example_inputs()["x"].shape[1:])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_exit_is_the_library_s_own_and_comes_back(name, tmp_path):
    net = FAMILIES[name]().eval()
    model = mx.MultiExitModel(mx.wrap(net), 7).eval()
    x = rows(model.backbone)
    with torch.no_grad():
        wanted = net(x)
        assert torch.equal(model(x)[-1], wanted)
        model.save_pretrained(tmp_path)
        again = mx.MultiExitModel.from_pretrained(tmp_path)
        assert torch.equal(again(x)[-1], wanted)
        assert torch.equal(again(x), model(x))
        assert torch.equal(copy.deepcopy(model)(x), model(x))
    assert again.backbone.spec == model.backbone.spec
    assert {p.data_ptr() for p in model.backbone.parameters()} <= {
        p.data_ptr() for p in net.parameters()
    }, "weights were copied"


def test_what_is_read_off_an_instance_can_be_saved():
    for family in timm_families.FAMILIES.values():
        assert family.arguments.keys() <= specs.TIMM_ARGUMENTS.keys()


@pytest.mark.parametrize("name", ["vit", "resnet", "convnext", "torchvision resnet"])
def test_other_classes_have_new_heads_alone(name):
    model = mx.MultiExitModel(mx.wrap(FAMILIES[name]()), 3).eval()
    assert model(rows(model.backbone)).shape[2] == 3


@pytest.mark.parametrize("name", [TINY, "test_resnet", "test_convnext"])
def test_models_without_a_head_have_none(name):
    options = {**VIT, "num_classes": 0} if name == TINY else {"num_classes": 0}
    backbone = mx.wrap(timm.create_model(name, **options))
    assert backbone.classifier is None
    assert backbone.spec is not None


# Edited instances: the same network comes back, or none


def truncated(net):
    net.blocks = net.blocks[:1]


def scaled(net):
    net.blocks[1].attn.scale = 0.1


def other_eps(net):
    net.norm.eps = 0.5


def hooked(net):
    net.blocks[0].register_forward_hook(lambda module, args, output: output * 2)


def spectral(net):
    torch.nn.utils.parametrizations.spectral_norm(net.blocks[0].mlp.fc1)


class LoRA(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear, self.more = linear, nn.Linear(linear.in_features, linear.out_features)

    def forward(self, x):
        return self.linear(x) + self.more(x)


def adapted(net):
    net.blocks[0].mlp.fc1 = LoRA(net.blocks[0].mlp.fc1)


def new_head(net):
    net.head = nn.Sequential(nn.Linear(24, 9), nn.ReLU(), nn.Linear(9, 7))


def smaller_head(net):
    net.head = nn.Linear(24, 5)


def relu(net):
    net.blocks[0].mlp.act = nn.ReLU()


def tied(net):
    net.blocks[1] = net.blocks[0]


@pytest.mark.parametrize(
    ("edit", "kept"),
    [
        (truncated, True),
        (smaller_head, True),
        (scaled, False),
        (other_eps, False),
        (hooked, False),
        (spectral, False),
        (adapted, False),
        (new_head, False),
        (relu, False),
        (tied, False),
    ],
)
def test_an_edited_instance_comes_back_the_same_or_not_at_all(edit, kept, tmp_path):
    net = timm.create_model(TINY, **VIT).eval()
    edit(net)
    backbone = mx.wrap(net)
    classes = backbone.classifier.num_classes
    model = mx.MultiExitModel(backbone, classes).eval()
    x = rows(backbone)
    with torch.no_grad():
        assert torch.equal(model(x)[-1], net(x))
        assert (backbone.spec is not None) == kept
        if kept:
            model.save_pretrained(tmp_path)
            assert torch.equal(mx.MultiExitModel.from_pretrained(tmp_path)(x), model(x))


@pytest.mark.parametrize("make", [timm.create_model, torchvision.models.get_model])
def test_a_resnet_without_its_last_group_is_shorter(make):
    net = make("resnet18")
    net.layer4, net.fc = nn.Identity(), nn.Linear(256, 5)
    backbone = mx.wrap(net.eval(), input_shape=(3, 64, 64))
    x = rows(backbone)
    with torch.no_grad():
        assert backbone.num_stages == 6
        assert torch.equal(mx.MultiExitModel(backbone, 5).eval()(x)[-1], net(x))


def test_edits_after_the_wrap_are_seen_when_it_is_saved(tmp_path):
    backbone = mx.wrap("timm:test_resnet", input_shape=(3, 32, 32))
    model = mx.MultiExitModel(backbone, 3)
    backbone.stages[0].conv1.stride = (2, 2)
    with pytest.warns(
        UserWarning, match=r"stages.0.conv1: stride is \(2, 2\), made again \(1, 1\)"
    ):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="give from_pretrained the same backbone"):
        mx.MultiExitModel.from_pretrained(tmp_path)


def test_edits_before_the_wrap_are_named_when_it_is_saved(tmp_path):
    net = timm.create_model(TINY, **VIT)
    relu(net)
    model = mx.MultiExitModel(mx.wrap(net), 3)
    with pytest.warns(UserWarning, match=r"stages.0.mlp.act: a ReLU, made again a GELU"):
        model.save_pretrained(tmp_path)


def test_a_class_with_a_forward_of_its_own_is_refused():
    class Twice(torchvision.models.ResNet):
        def forward(self, x):
            return super().forward(2 * x)

    net = Twice(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)
    with pytest.raises(ValueError, match="Twice's own forward isn't its stages and head"):
        mx.wrap(net, input_shape=(3, 32, 32))


def test_numpy_numbers_are_plain_ones_and_classes_are_not_described(tmp_path):
    one = mx.wrap("timm:test_resnet", in_chans=np.int64(1), drop_rate=np.float32(0.5))
    assert one.spec["kwargs"] == {"in_chans": 1, "drop_rate": 0.5}
    model = mx.MultiExitModel(mx.wrap("timm:test_resnet", act_layer=nn.SiLU), 2)
    with pytest.warns(UserWarning, match="must pass backbone="):
        model.save_pretrained(tmp_path)
    for name, options in (
        ("timm:test_resnet", {"no_such": 1}),
        ("torchvision:resnet18", {"no_such": 1}),
        ("timm:vit_tiny_patch16_224", {"global_pool": "nose"}),
    ):
        with pytest.raises(ValueError, match=r"no_such|nose|pooling"):
            mx.wrap(name, **options)


def test_what_differs_is_named():
    first, second = (mx.wrap(timm.create_model(TINY, **VIT)) for _ in range(2))
    assert difference(first, second) == ""
    assert rebuild_difference(first, rebuild) == ""
    second.stages[1].mlp.drop1.p = 0.3
    assert difference(first, second) == "stages.1.mlp.drop1: p is 0.3, made again 0.0"
    rng = torch.get_rng_state()
    rebuild_difference(first, rebuild)
    assert torch.equal(torch.get_rng_state(), rng), "random numbers were drawn"
