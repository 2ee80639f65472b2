"""A network cut at named parts computes what its own forward does, or is refused with the place."""

import copy
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.ao.quantization import default_dynamic_qconfig
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

import multiexit as mx
from multiexit import testing
from multiexit.backbones import layouts


class Net(nn.Module):
    """Three blocks, and a forward that may do something between them."""

    def __init__(self, between=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.drop = nn.Dropout(0.5)
        self.offset = nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm2d(4, affine=False)
        self.fc = nn.Linear(4, 2)
        self.between = between

    def forward(self, x):
        self.x = x
        x = self.a(self.stem(x))
        x = self.between(self, x) if self.between else x
        return self.fc(self.c(self.b(x)).mean((2, 3)))


PARTS = {"stem": ["stem"], "stages": ["a", "b", "c"], "input_shape": (3, 8, 8)}

BETWEEN = {
    "a function": (lambda net, x: F.relu(x), r"doesn't hand 'a' on to 'b'.*largest difference"),
    "a pool": (lambda net, x: F.max_pool2d(x, 2), r"'a' on to 'b'.*shape \(2, 4, 8, 8\) instead"),
    "a permutation": (lambda net, x: x.transpose(2, 3), "'a' on to 'b'"),
    "a sum": (lambda net, x: x + x.mean(), "'a' on to 'b'"),
    "a parameter of zeros": (lambda net, x: x + net.offset, r"uses \['offset'\] before the end of"),
    "dropout": (lambda net, x: net.drop(x), r"runs \['drop'\], which act in training"),
    "a mask of padding": (
        lambda net, x: x * (net.x != 0).any(1, keepdim=True).any(2, keepdim=True),
        "'a' on to 'b'",
    ),
    "a mask of positions": (lambda net, x: x * (net.x != 0).any(1, keepdim=True), "'a' on to 'b'"),
    "a clamp": (lambda net, x: x.clamp(-20, 20), "'a' on to 'b'"),
    "a norm": (lambda net, x: net.norm(x), "'a' on to 'b'|act in training"),
    "a part twice": (lambda net, x: net.a(x), "'a' on to 'b'"),
}


@pytest.mark.parametrize("what", BETWEEN)
def test_what_a_forward_does_between_parts_is_found(what):
    between, message = BETWEEN[what]
    with pytest.raises(ValueError, match=message):
        mx.wrap(Net(between), **PARTS)


def patched(net):
    own = net.forward
    net.forward = lambda x: own(2 * x)


def hooked(net):
    net.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))


class Doubles(nn.Sequential):
    def forward(self, x):
        return super().forward(2 * x)


@pytest.mark.parametrize(
    ("kind", "change"), [(nn.Sequential, patched), (nn.Sequential, hooked), (Doubles, None)]
)
def test_what_a_sequence_does_before_its_first_part_is_found(kind, change):
    net = kind(nn.Linear(4, 4), nn.Linear(4, 4))
    if change is not None:
        change(net)
    with pytest.raises(ValueError, match="doesn't hand the network's input on to '0' as it is"):
        mx.wrap(net)


def hooked_behind(net):
    net.register_forward_hook(lambda _, inputs, output: 2 * output)


class Doubled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("stem", [0, 1])
@pytest.mark.parametrize(("kind", "change"), [(nn.Sequential, hooked_behind), (Doubled, None)])
def test_what_a_sequence_does_behind_its_last_part_is_found(kind, change, stem):
    net = kind(*linears(3))
    if change is not None:
        change(net)
    parts = {"stem": ["0"], "stages": ["1", "2"]} if stem else {}
    with pytest.raises(ValueError, match="doesn't give what '2' gives as it is: largest diff"):
        mx.wrap(net, **parts)
    assert mx.wrap(net, stages=["0", "1"]).num_stages == 2  # what comes behind these is a head


def net_inside(kind):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    return torch.compile(net) if kind == "_orig_mod" else nn.DataParallel(net)


@pytest.mark.parametrize("name", ["_orig_mod", "module"])
def test_what_runs_another_network_says_which_to_wrap(name):
    outer = net_inside(name)
    with pytest.raises(ValueError, match=rf"runs another network: wrap that one, its \.{name};"):
        mx.wrap(outer)
    assert mx.wrap(getattr(outer, name)).num_stages == 2


@pytest.mark.parametrize("shape", [(10**12,), (3, 10**6, 10**6)])
def test_a_row_larger_than_machines_is_refused(shape):
    with pytest.raises(ValueError, match=r"numbers a row; at most 1,073,741,824"):
        mx.wrap(Net(), stages=["stem"], input_shape=shape)


def test_parts_of_a_plain_chain_are_taken_in_any_form():
    net = Net().train()
    net.b.eval()
    modes = [m.training for m in net.modules()]
    x = torch.randn(2, 3, 8, 8)
    for stages in (["a", "b", "c"], ("a", net.b, "c"), (name for name in "abc")):
        backbone = mx.wrap(net, stem=["stem"], stages=stages, input_shape=[3, 8, 8])
        torch.testing.assert_close(net.fc(backbone.features(x)[-1].mean((2, 3))), net(x))
    assert [m.training for m in net.modules()] == modes
    assert all(p.requires_grad for p in net.parameters())
    for p in net.parameters():
        p.requires_grad_(False)
    mx.wrap(net, **PARTS)
    assert not any(p.requires_grad for p in net.parameters())
    testing.check_backbone(mx.wrap(copy.deepcopy(net), **PARTS))


class Kwargs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Bilinear(4, 4, 4)

    def forward(self, x):
        return self.b(self.a(x), x)


class Backwards(nn.Sequential):
    """A subclass of a chain whose forward is its own."""

    def forward(self, x):
        for layer in reversed(self):
            x = layer(x)
        return x


class Same(nn.Module):
    """Two layers that can't be told apart by what they give."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Identity(), nn.Identity()
        self.fc = nn.Linear(32, 2)

    def forward(self, x):
        return self.fc(self.b(self.a(x)))


class Again(nn.Module):
    """One layer, twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


def linears(n=2):
    return [nn.Linear(4, 4) for _ in range(n)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mx.wrap(Net(), **{**PARTS, "stem": []}), "don't run as a chain.*3 channels"),
        (
            lambda: mx.wrap(Net(), **{**PARTS, "stages": ["b", "a"]}),
            "doesn't hand 'stem' on to 'b'",
        ),
        (lambda: mx.wrap(Same(), stages=["b", "a"], input_shape=(32,)), "runs 'a' before 'b'"),
        (lambda: mx.wrap(Net(), **{**PARTS, "stages": ["a", "c"]}), "'a' on to 'c'"),
        (lambda: mx.wrap(Net(), **{**PARTS, "stages": [*linears(1)]}), "don't run as a chain"),
        (lambda: mx.wrap(Net(), **{**PARTS, "stages": ["a", "norm"]}), "doesn't run 'norm'"),
        (lambda: mx.wrap(Net(), **{**PARTS, "input_shape": (3, 0, 8)}), r"got \(3, 0, 8\)"),
        (lambda: mx.wrap(Net(), **{**PARTS, "input_shape": 32}), "shape of one input row"),
        (lambda: mx.wrap(Net(), **{**PARTS, "stages": [0]}), "lists of names or modules, got 0"),
        (lambda: mx.wrap(Net(), **{**PARTS, "stages": 3}), "lists of names, got stages=3"),
        (lambda: mx.wrap(Net(), **{**PARTS, "layout": "nhwc"}), "no layout 'nhwc'"),
        (lambda: mx.wrap(Kwargs(), stages=["a", "b"]), "don't run as a chain"),
        (lambda: mx.wrap(Backwards(*linears())), "runs '0' before|'0' before|on to '0'"),
        (lambda: mx.wrap(nn.Sequential(nn.LazyLinear(3))), "has no shape yet: run the network"),
        (lambda: mx.wrap(nn.Sequential(*linears()).to("meta")), "'0.weight' is on the meta device"),
        (lambda: mx.wrap(nn.Sequential(nn.Linear(4, 4, dtype=torch.cfloat))), "are complex"),
    ],
)
def test_what_cannot_be_cut_so_is_named(make, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make()


def test_a_layer_that_runs_twice_may_be_named_twice():
    net, x = Again().eval(), torch.randn(3, 4)
    backbone = mx.wrap(net, stages=["layer", "layer"])
    assert torch.equal(backbone.features(x)[-1], net(x))


def test_a_container_without_a_forward_is_what_the_names_say():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.floors = nn.ModuleList(linears(3))

    assert mx.wrap(Tower(), stages=[f"floors.{i}" for i in range(3)]).num_stages == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype):
    backbone = mx.wrap(Net().to(dtype), **PARTS)
    model = mx.MultiExitModel(backbone, 2)
    assert model(torch.randn(2, 3, 8, 8, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("name", "stages", "options"),
    [
        ("eva02_tiny_patch14_224", "blocks", {"img_size": 28, "depth": 2}),
        ("cait_xxs24_224", "blocks", {"img_size": 32, "depth": 2}),
        ("convit_tiny", "blocks", {"img_size": 32, "depth": 2, "local_up_to_layer": 1}),
    ],
)
def test_families_with_parameters_that_are_no_module_are_refused(name, stages, options):
    net = timm.create_model(name, num_classes=3, **options)
    shape = (3, options["img_size"], options["img_size"])
    with pytest.raises(ValueError, match=r"doesn't hand 'patch_embed' on to 'blocks.0' as it is"):
        mx.wrap(net, stem=["patch_embed"], stages=["blocks.0", "blocks.1"], input_shape=shape)


# The network's own head


class Classifying(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)
        self.pool, self.norm = nn.AdaptiveAvgPool2d(1), nn.LayerNorm(6)
        self.drop, self.fc = nn.Dropout(0.3), nn.Linear(6, 5)

    def forward(self, x):
        x = self.pool(self.body(self.stem(x))).flatten(1)
        return self.fc(self.drop(self.norm(x)))


@pytest.mark.parametrize("by", ["names", "modules"])
def test_named_parts_of_a_head_are_the_last_exit(by, tmp_path):
    net, x = Classifying().eval(), torch.randn(3, 3, 8, 8)
    names = ["pool", Flatten(), "norm", "drop", "fc"]
    head = names
    if by == "modules":
        head = [net.get_submodule(part) if isinstance(part, str) else part for part in head]
    parts = {"stem": ["stem"], "stages": ["body"], "input_shape": (3, 8, 8)}
    model = mx.MultiExitModel(mx.wrap(net, **parts, classifier=head), 5).eval()
    with torch.no_grad():
        assert torch.equal(model(x)[-1], net(x))
        with pytest.warns(UserWarning, match="must pass backbone="):
            model.save_pretrained(tmp_path)
        fresh = mx.wrap(
            Classifying(), **parts, classifier=["pool", Flatten(), "norm", "drop", "fc"]
        )
        again = mx.MultiExitModel.from_pretrained(tmp_path, backbone=fresh)
        assert torch.equal(again(x)[-1], net(x))


class Flatten(nn.Flatten):
    """A flattening of the user's own."""


def test_a_pool_and_a_linear_layer_are_a_resnet_s_head():
    net = torchvision.models.ResNet(
        torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4
    ).eval()
    parts = {
        "stem": ["conv1", "bn1", "relu", "maxpool"],
        "stages": [f"layer{i}" for i in range(1, 5)],
        "input_shape": (3, 32, 32),
    }
    x = torch.randn(2, 3, 32, 32)
    for head in (["avgpool", "fc"], "fc"):
        model = mx.MultiExitModel(mx.wrap(net, **parts, classifier=head), 4).eval()
        with torch.no_grad():
            torch.testing.assert_close(model(x)[-1], net(x))
    with pytest.raises(ValueError, match="classifier: ResNet has no module 'head'"):
        mx.wrap(net, **parts, classifier=["avgpool", "head"])


def test_a_head_that_is_not_what_the_forward_runs_is_refused():
    parts = {"stem": ["stem"], "stages": ["body"], "input_shape": (3, 8, 8)}
    with pytest.raises(ValueError, match=r"largest difference .* in classifier=, such as"):
        mx.wrap(Classifying(), **parts, classifier="fc")
    mx.wrap(Classifying(), **parts, classifier=nn.Linear(6, 2))  # another one is what it is


# Layouts of chains


class Turned(nn.Module):
    """A 1-D convolution over tokens [B, T, H]."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv1d(width, width, 3, padding=1)

    def forward(self, x):
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


def conv1d(i, o):
    return nn.Sequential(nn.Conv1d(i, o, 3, padding=1), nn.BatchNorm1d(o), nn.ReLU())


def conv3d(i, o):
    return nn.Sequential(nn.Conv3d(i, o, 3, padding=1), nn.ReLU())


def encoder(batch_first=True):
    return nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)


def swin():
    return timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=28, embed_dim=12, depths=(1, 1), num_heads=(1, 2)
    )


def chain_of(*parts):
    return lambda: nn.Sequential(*parts)


CHAINS = {
    "1-D convolutions": (chain_of(conv1d(4, 8), conv1d(8, 16)), (4, 20), "sequence", [8, 16]),
    "as many channels as positions": (
        chain_of(conv1d(4, 16), conv1d(16, 16)), (4, 16), "sequence", [16, 16],
    ),
    "1-D convolutions over tokens": (chain_of(Turned(8), Turned(8)), (5, 8), "tokens", [8, 8]),
    "the same of one size": (chain_of(Turned(8), Turned(8)), (8, 8), "tokens", [8, 8]),
    "transformer": (chain_of(encoder(), encoder()), (8, 8), "tokens", [8, 8]),
    "3-D convolutions": (chain_of(conv3d(1, 2), conv3d(2, 4)), (1, 6, 6, 6), "volume", [2, 4]),
    "LayerNorm over the last": (
        chain_of(nn.Linear(3, 5), nn.LayerNorm(5)), (4, 4, 3), "channels-last-image", [5, 5],
    ),
    "read by a convolution": (
        chain_of(nn.ReLU(), nn.Conv2d(3, 5, 3)), (3, 8, 8), "image", [3, 5],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHAINS)
def test_the_layers_tell_the_layout(what):
    make, shape, layout, widths = CHAINS[what]
    backbone = mx.wrap(make(), input_shape=shape)
    assert backbone.layouts == [layout] * len(widths)
    model = mx.MultiExitModel(backbone, 3)
    assert [head.linear.in_features for head in model.heads] == widths
    assert model(torch.randn(2, *shape)).shape == (len(widths), 2, 3)
    assert model.cost().macs_M[0] > 0
    testing.check_backbone(backbone)


def test_swin_s_heads_read_its_channels():
    parts = {
        "stem": ["patch_embed"],
        "stages": ["layers.0", "layers.1"],
        "input_shape": (3, 28, 28),
    }
    backbone = mx.wrap(swin(), **parts)
    assert backbone.layouts == ["channels-last-image"] * 2
    heads = mx.MultiExitModel(backbone, 5).heads
    assert [head.linear.in_features for head in heads] == [12, 24]


def test_swin_of_torchvision_and_convnext_whose_widths_stand_elsewhere():
    net = torchvision.models.SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=3).eval()
    backbone = mx.wrap(net, stem=["features.0"], stages=["features.1"], input_shape=(3, 16, 16))
    assert backbone.layouts == ["channels-last-image"]
    assert backbone.feature_shapes == [(4, 4, 8)]
    parts = {"stem": ["stem"], "stages": ["stages.0", "stages.1"], "input_shape": (3, 64, 64)}
    convnext = timm.create_model("test_convnext", num_classes=3)
    assert mx.wrap(convnext, **parts).layouts == ["image", "image"]


def test_one_network_may_have_several_layouts():
    chain = nn.Sequential(conv1d(2, 4), nn.Sequential(nn.Flatten(), nn.Linear(20, 6)))
    for layout in (None, "sequence", ["sequence", "vector"]):
        backbone = mx.wrap(chain, input_shape=(2, 5), layout=layout)
        assert backbone.layouts == ["sequence", "vector"]
        assert mx.MultiExitModel(backbone, 3)(torch.randn(2, 2, 5)).shape == (2, 2, 3)


def test_a_layout_that_cannot_be_told_is_asked_for():
    chain = nn.Sequential(nn.ReLU(), nn.PReLU())
    with pytest.raises(ValueError, match=r"\(B, 5, 6\), and it can't be told.*pass layout=, one"):
        mx.wrap(chain, input_shape=(5, 6))
    for layout in ("tokens", "sequence"):
        backbone = mx.wrap(chain, input_shape=(5, 6), layout=layout)
        width = mx.MultiExitModel(backbone, 2).heads[0].linear.in_features
        assert width == layouts.width_of((5, 6), layout)
    with pytest.raises(ValueError, match=r"layout 'image' is \[B, C, height, width\], and stage 0"):
        mx.wrap(chain, input_shape=(5, 6), layout="image")


def test_a_network_that_mixes_the_rows_of_a_batch_is_refused():
    chain = nn.Sequential(encoder(batch_first=False), encoder(batch_first=False))
    with pytest.raises(ValueError, match=r"stage 0: a row's feature depends on the other rows"):
        mx.wrap(chain, input_shape=(5, 8))
    norm = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    with pytest.raises(ValueError, match=r"stage 1: .*does every batch norm keep statistics"):
        mx.wrap(norm)


def resnet(**options):
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(block, [1, 1, 1, 1], num_classes=4, **options)


def bert():
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(**sizes, num_hidden_layers=2, initializer_range=0.3)
    return BertForSequenceClassification(config)


def quantised(net, parts):
    return torch.ao.quantization.quantize_dynamic(net.eval(), parts, dtype=torch.qint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda: quantised(bert(), {nn.Linear}),
        lambda: quantised(bert(), {"classifier": default_dynamic_qconfig}),
        lambda: quantised(resnet(), {nn.Linear}),
        lambda: quantised(torchvision.models.regnet_y_400mf(num_classes=3), {nn.Linear}),
    ],
)
def test_a_network_with_integers_in_it_is_refused(make):
    with pytest.raises(ValueError, match=r"quantised: it can't learn.*as it was before"):
        mx.wrap(make())


def test_so_is_one_of_a_library():
    mixing = resnet(norm_layer=partial(nn.BatchNorm2d, track_running_stats=False))
    with pytest.raises(ValueError, match="stage 0: a row's feature depends on the other rows"):
        mx.wrap(mixing)


def test_a_1_d_network_learns_what_its_channels_say():
    torch.manual_seed(0)
    y = torch.arange(96) % 3
    x = 0.3 * torch.randn(96, 3, 30)
    x[torch.arange(96), y, 4:12] += 2
    model = mx.MultiExitModel(
        mx.wrap(nn.Sequential(conv1d(3, 8), conv1d(8, 8)), input_shape=(3, 30)), 3
    )
    data = torch.utils.data.TensorDataset(x, y)
    config = mx.TrainConfig(epochs=6, batch_size=16, lr=1e-2, progress=False)
    mx.Trainer(model, mx.recipes.joint(), config).fit(data)
    with torch.no_grad():
        right_M = (model.eval()(x).argmax(-1) == y).float().mean(1)
    assert right_M[0] > 0.6
    assert right_M[1] > 0.9


def test_a_network_is_wrapped_in_inference_mode():
    with torch.inference_mode():
        model = mx.MultiExitModel(mx.wrap(bert())).eval()
        x = torch.randint(60, (2, 5))
        answer = model.predict(mx.FixedExit(1), input_ids=x)
        assert torch.equal(answer.logits_BC, model(input_ids=x)[1])
