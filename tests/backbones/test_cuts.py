"""Networks that nobody wrote an adapter for: cut where a block ends, and the same to the last bit.

Letters: B batch rows.
"""

import copy
import pickle
import re
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import multiexit as mx
from multiexit import testing
from multiexit.backbones import rebuild, specs
from multiexit.backbones.graphs import cuts
from multiexit.backbones.same import difference, rebuild_difference


class Block(nn.Module):
    def __init__(self, width, drop=0.0):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.scale, self.drop = nn.Parameter(torch.ones(width, 1, 1)), drop

    def forward(self, x):
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return x + self.scale * F.dropout(y, self.drop, self.training)


class Net(nn.Module):
    """A stem, blocks in a list, a norm, a pool, and a linear layer."""

    def __init__(self, blocks=4, width=8, drop=0.0, end=None):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList([Block(width, drop) for _ in range(blocks)])
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, 5)
        self.end = end

    def forward(self, x, mask=None):
        x = F.relu(self.stem(x), inplace=True)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x).mean((2, 3))
        x = self.end(self, x) if self.end else x
        return self.fc(F.dropout(x, 0.1, self.training))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 8)

    def forward(self, x, height, width):
        image = x.transpose(1, 2).reshape(-1, 8, height, width)
        return x + self.linear(self.conv(image).flatten(2).transpose(1, 2))


class Sized(nn.Module):
    """Height and width, read once, go through all blocks."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.ModuleList([Mixer() for _ in range(4)])
        self.fc = nn.Linear(8, 7)

    def forward(self, x):
        x = self.stem(x)
        _, _, height, width = x.shape
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, height, width)
        return self.fc(x.mean(1))


SHAPE = (3, 16, 16)
SMALL = {"num_classes": 7, "drop_path_rate": 0.1}
NETWORKS = {
    "of a user": (lambda: Net(), SHAPE),
    "of a user, with dropout": (lambda: Net(drop=0.3), SHAPE),
    "of a user, of one size": (lambda: Sized(), SHAPE),
    "timm's efficientnet": (lambda: timm.create_model("test_efficientnet", **SMALL), (3, 64, 64)),
    "timm's mambaout": (lambda: timm.create_model("test_mambaout", **SMALL), (3, 64, 64)),
    "timm's byobnet": (lambda: timm.create_model("test_byobnet", num_classes=7), (3, 64, 64)),
    "shufflenet": (lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=7), (3, 64, 64)),
    "swin": (
        lambda: torchvision.models.SwinTransformer(
            [4, 4], 8, [2, 2], [2, 2], [4, 4], dropout=0.1, num_classes=7
        ),
        (3, 32, 32),
    ),
}


@pytest.fixture(params=NETWORKS)
def network(request):
    make, shape = NETWORKS[request.param]
    torch.manual_seed(0)
    net = make()
    for p in net.parameters():
        if not p.any():
            nn.init.normal_(p)  # some heads are zeros when they are made
    return net, torch.randn(3, *shape)


def whole(backbone, x):
    """The network's answer by way of the stages."""
    return backbone.classifier(backbone.features(x)[-1])


def test_pieces_are_the_network_to_the_last_bit(network):
    net, x = network
    net.train()
    net.requires_grad_(True)
    backbone = mx.wrap(net, input_shape=x.shape[1:])
    assert all(m.training for m in net.modules()), "modes were changed"
    parts = nn.ModuleList([backbone, backbone.classifier]).eval()
    net.eval()
    ours = {p.data_ptr() for p in parts.parameters()}
    assert ours == {p.data_ptr() for p in net.parameters()}, "weights were copied, or left out"
    with torch.no_grad():
        assert torch.equal(whole(backbone, x), net(x))
    testing.check_backbone(backbone, {"x": x})


def test_a_step_of_training_is_the_network_s_own(network):
    net, x = network
    answers = []
    for staged in (False, True):
        copied = copy.deepcopy(net)
        backbone = mx.wrap(copied, input_shape=x.shape[1:])
        nn.ModuleList([backbone, backbone.classifier]).train()
        copied.train()
        torch.manual_seed(1)
        logits = whole(backbone, x) if staged else copied(x)
        logits.square().sum().backward()
        answers.append([logits, *(p.grad for p in copied.parameters()), *copied.buffers()])
    for theirs, ours in zip(*answers, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


def test_predict_simulates_row_by_row(network):
    net, x = network
    backbone = mx.wrap(net.eval(), input_shape=x.shape[1:])
    model = mx.MultiExitModel(backbone, 4).eval()
    rows = torch.randn(9, *x.shape[1:])
    with torch.no_grad():
        logits_MBC = model(rows)
        sureness = logits_MBC[:-1].softmax(-1).amax(-1).flatten().sort().values
        policy = mx.MaxProb(sureness[len(sureness) // 2 :][:2].mean().item())
        answers, exit_B = model.predict(policy, rows)
        alone = [model.predict(policy, row[None]) for row in rows]
    assert torch.equal(exit_B, mx.simulate(policy, logits_MBC))
    assert exit_B.tolist() == [int(exit_1) for _, exit_1 in alone]
    torch.testing.assert_close(answers, torch.cat([answer for answer, _ in alone]))


# Where the cuts are


def names(net, shape=SHAPE):
    backbone = cuts.from_module(net, torch.zeros(1, *shape), spec={})
    return backbone.spec["cuts"], backbone


def test_a_cut_is_where_a_block_ends():
    found, backbone = names(Net(blocks=9))
    assert found == [*(f"add_{i}" if i else "add" for i in range(8)), "norm"]
    assert {"stem.weight", "blocks.0.scale", "blocks.0.norm2.bias"} <= {
        name for name, _ in backbone.stages[0].named_parameters()
    }, "the stem is no stage, and names stay"
    assert isinstance(backbone.classifier.linear, nn.Linear)
    assert backbone.feature_shapes == [(8, 16, 16)] * 9


def test_heads_read_the_token_that_the_network_s_own_reads():
    for pool, ours in {"token": "first", "avg": "mean"}.items():
        net = timm.create_model("cait_xxs24_224", img_size=32, depth=2, global_pool=pool)
        assert mx.wrap(net).pool == ours


class Encoding(nn.Module):
    """Of torch's own layers, which run by one fused operation in evaluation."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True) for _ in range(3)
        )

    def forward(self, x):
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return self.last(x.mean(1))


def test_torchs_own_encoder_layers_are_blocks():
    network, x = Encoding().eval(), torch.randn(2, 5, 8)
    model = mx.MultiExitModel(mx.wrap(network, input_shape=(5, 8)), 4).eval()
    with torch.no_grad():
        assert torch.equal(model(x)[-1], network(x))
    assert model.cost().layers_M == (1, 2, 3)


class Sentences(nn.Module):
    """torch's own encoder as a whole, in its usual forms."""

    def __init__(self, layer, norm=False, is_causal=False, is_masked=False):
        super().__init__()
        self.table, self.places = nn.Embedding(9, 8), nn.Parameter(torch.randn(6, 8))
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **layer)
        ends = nn.LayerNorm(8) if norm else None
        self.encoder = nn.TransformerEncoder(block, 4, ends, enable_nested_tensor=False)
        self.last = nn.Linear(8, 3)
        self.is_causal, self.is_masked = is_causal, is_masked

    def forward(self, x):
        later = nn.Transformer.generate_square_subsequent_mask(6) if self.is_causal else None
        padding = x == 0 if self.is_masked else None
        return self.last(self.encoder(self.table(x) + self.places, later, padding).mean(1))


@pytest.mark.parametrize(
    ("layer", "options"),
    [({}, {}), ({"norm_first": True}, {"norm": True}), ({"bias": False}, {"is_causal": True})],
)
def test_torchs_own_encoder_is_followed_as_a_whole(layer, options):
    network, x = Sentences(layer, **options).eval(), torch.randint(9, (4, 6))
    own = nn.TransformerEncoder.forward
    model = mx.MultiExitModel(mx.wrap(network, input_shape=(6,))).eval()
    assert nn.TransformerEncoder.forward is own
    with torch.no_grad():
        assert torch.equal(model(x)[-1], network(x))
    assert model.num_exits == 4


def test_torchs_own_encoder_is_exported(tmp_path):
    model = mx.MultiExitModel(mx.wrap(Sentences({}), input_shape=(6,))).eval()
    x = torch.randint(9, (8, 6))
    sure = model(x)[0].softmax(-1).amax(-1).detach()
    parity = mx.export(model, tmp_path / "onnx", mx.MaxProb(float(sure.median())), rows=[{"x": x}])
    assert parity.largest_difference < 1e-5
    assert parity.same_exit == 1


def test_a_mask_that_all_blocks_read_is_named():
    with pytest.raises(ValueError, match=r"while eq is in use beside it.*wrap.register"):
        mx.wrap(Sentences({}, is_masked=True), input_shape=(6,))


def test_blocks_are_looked_for_deeper_where_a_few_modules_hold_all():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            layers = [nn.Sequential(*(Block(8) for _ in range(4))) for _ in range(2)]
            self.body = nn.Sequential(nn.Conv2d(3, 8, 1), *layers)

        def forward(self, x):
            return self.body(x).mean((2, 3))

    found, backbone = names(Deep())
    assert found == ["add", *(f"add_{i}" for i in range(1, 8))]
    assert backbone.classifier is None


def test_what_a_later_layer_writes_over_is_no_feature():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)])
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x):
            for conv in self.convs:
                x = self.relu(conv(x))
            return x.mean((2, 3))

    found, backbone = names(Writes())
    assert found == ["relu", "relu_1", "relu_2", "relu_3"]
    x = torch.randn(2, *SHAPE)
    with torch.no_grad():
        features = backbone.features(x)
        before = [feature.clone() for feature in features[:1]]
    assert torch.equal(features[0], before[0])


def test_a_forward_that_asks_for_sizes_stays_whole():
    class Pads(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2)))

        def forward(self, x):
            return self.convs(F.pad(x, (0, 1, 0, 1)) if x.shape[2] % 2 else x)

    net = Net(blocks=3)
    net.blocks.insert(1, Pads())
    found, _ = names(net.eval())
    assert "blocks_1" in found
    with torch.no_grad():
        odd = torch.randn(2, 3, 15, 15)
        assert torch.equal(whole(mx.wrap(net, input_shape=SHAPE).eval(), odd), net(odd))


def test_sizes_that_all_blocks_use_are_those_of_the_example():
    found, backbone = names(Sized())
    assert found == ["add", "add_1", "add_2", "add_3"]
    assert backbone.layouts == ["tokens"] * 4
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\) for a network cut for \(3, 16"):
        backbone.features(torch.randn(2, 3, 8, 8))
    again = cuts.stage(Sized(), torch.zeros(1, *SHAPE), None, backbone.spec)
    assert difference(again, backbone) == ""


@pytest.mark.parametrize("count", [lambda x: x.shape[0], lambda x: x.size(0)])
def test_the_number_of_rows_is_known_everywhere(count):
    class Views(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)])
            self.fc = nn.Linear(3 * 16 * 16, 7)

        def forward(self, x):
            rows = count(x)
            for conv in self.convs:
                x = F.relu(conv(x))
            return self.fc(x.view(rows, -1))

    found, backbone = names(Views())
    assert found == ["relu", "relu_1", "relu_2"]
    assert backbone.features(torch.randn(2, 3, 8, 8))[0].shape == (2, 3, 8, 8)


def test_a_first_size_may_be_another_than_the_number_of_rows():
    class Folds(nn.Module):
        """Positions become rows, and rows again."""

        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)])
            self.mix, self.fc = nn.Linear(3, 3), nn.Linear(3, 7)

        def forward(self, x):
            for conv in self.convs:
                x = F.relu(conv(x))
            x = x.permute(0, 2, 3, 1).reshape(-1, 3)
            number = x.shape[0]
            x = self.mix(x).view(number // 256, 256, 3)
            return self.fc(x.mean(1))

    assert names(Folds())[0] == ["relu", "relu_1", "view"]


def test_a_branch_of_training_alone_is_left_out():
    net = torchvision.models.GoogLeNet(num_classes=3, init_weights=False)
    backbone = mx.wrap(net, input_shape=(3, 64, 64))
    assert not [name for name in backbone.state_dict() if "aux" in name]
    assert backbone.num_stages == 9
    assert rebuild_difference(backbone, rebuild) == ""


class Vectors(nn.Module):
    """Residual blocks on vectors, and a linear layer that may not be the end."""

    def __init__(self, end):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.fc, self.scale, self.softmax = nn.Linear(8, 3), 2.0, nn.Softmax(-1)
        self.end = end

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.end(self, self.fc(x))


ENDS = {
    "a scale": lambda net, x: x * net.scale,
    "a temperature and a shift": lambda net, x: torch.add(x, 1) / 3,
    "probabilities": lambda net, x: x.softmax(-1),
    "a module of these": lambda net, x: net.softmax(x),
}


@pytest.mark.parametrize("end", ENDS)
def test_what_scales_logits_belongs_to_the_head(end):
    net, x = Vectors(ENDS[end]).eval(), torch.randn(4, 8)
    backbone = mx.wrap(net, input_shape=(8,))
    assert backbone.feature_shapes == [(8,)] * 3
    model = mx.MultiExitModel(backbone).eval()
    with torch.no_grad():
        assert torch.equal(model(x)[-1], net(x))


def test_an_activation_ends_a_stage():
    backbone = mx.wrap(Vectors(lambda net, x: x.relu()), input_shape=(8,))
    assert backbone.feature_shapes == [(8,), (8,), (8,), (3,)]
    assert backbone.classifier is None


# Saved and loaded, copied


SOURCES = {
    "timm by name": lambda: mx.wrap("timm:test_efficientnet", num_classes=7, in_chans=1),
    "timm": lambda: mx.wrap(timm.create_model("test_mambaout", num_classes=7, in_chans=1)),
    "torchvision by name": lambda: mx.wrap(
        "torchvision:shufflenet_v2_x0_5", num_classes=7, input_shape=(3, 64, 64)
    ),
    "torchvision": lambda: mx.wrap(
        torchvision.models.squeezenet1_1(num_classes=7), input_shape=(3, 64, 64)
    ),
    "torchvision, with sizes that are worked out": lambda: mx.wrap(
        "torchvision:regnet_x_400mf", num_classes=7, input_shape=(3, 64, 64)
    ),
    "a layout of the user's": lambda: mx.wrap(
        "timm:test_efficientnet", num_classes=7, layout="image", input_shape=(3, 64, 64)
    ),
    "sizes of the example": lambda: mx.wrap(
        "timm:xcit_nano_12_p16_224", num_classes=7, depth=2, input_shape=(3, 64, 64)
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_it_comes_back_without_the_checkpoint(source, tmp_path):
    backbone = SOURCES[source]()
    model = mx.MultiExitModel(backbone, 7).eval()
    x = torch.randn(2, *backbone.example_inputs()["x"].shape[1:])
    model.save_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path)
    with torch.no_grad():
        wanted = model(x)
        assert torch.equal(again(x), wanted)
        assert torch.equal(copy.deepcopy(model)(x), wanted)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), wanted)
    assert again.backbone.spec == backbone.spec
    assert again.backbone.layouts == backbone.layouts


ARGUMENTS = {
    "timm's rates": (
        lambda: timm.create_model("test_efficientnet", drop_path_rate=0.3),
        {"drop_path_rate": 0.3},
    ),
    "timm's sizes": (
        lambda: timm.create_model(
            "beit_base_patch16_224", img_size=32, depth=2, embed_dim=48, num_heads=3
        ),
        {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3},
    ),
    "a class, the usual one": (
        lambda: timm.create_model("test_vit", img_size=64, act_layer=nn.GELU),
        {"img_size": 64},
    ),
    "torchvision's rates": (
        lambda: torchvision.models.efficientnet_b0(stochastic_depth_prob=0.3, dropout=0.1),
        {"stochastic_depth_prob": 0.3, "dropout": 0.1},
    ),
}


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_an_instance_is_described_by_the_arguments_it_was_made_with(arguments):
    make, expected = ARGUMENTS[arguments]
    shape = (3, expected.get("img_size", 64), expected.get("img_size", 64))
    network = make()
    if arguments.startswith("timm") and not hasattr(network, "_model_args"):
        pytest.skip("timm keeps arguments since 1.0.31")
    spec = mx.wrap(network, input_shape=shape).spec
    assert expected.items() <= spec["kwargs"].items()


def test_an_edited_network_has_no_description():
    net = timm.create_model("test_efficientnet", num_classes=7)
    assert mx.wrap(net).spec is not None
    net.blocks[1][0].bn1.eps = 0.5
    assert mx.wrap(net).spec is None
    net = timm.create_model("test_efficientnet", num_classes=7)
    net.forward_head = lambda x: 2 * type(net).forward_head(net, x)
    assert mx.wrap(net).spec is None


def test_another_graph_of_the_same_layers_is_another_network():
    first, second = (cuts.from_module(Net(end=end), torch.zeros(1, *SHAPE)) for end in (
        None, lambda net, x: 2 * x,
    ))  # fmt: skip
    assert difference(first, second) == ""
    assert "code is" in difference(first.classifier, second.classifier)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cuts": ["no_such"]}, "behind .*no_such"),
        ({"cuts": ["bn2", "bn1"]}, "can't be cut behind .*bn2"),
        ({"cuts": []}, "cuts"),
        ({"cuts": ["__import__('os')"]}, r"backbone.cuts\[0\]"),
        ({"layout": "sideways"}, "sideways"),
    ],
)
def test_a_changed_description_is_refused(change, message):
    spec = mx.wrap("timm:test_efficientnet").spec
    with pytest.raises(ValueError, match=message):
        rebuild({**spec, **change})


def test_every_classifier_of_the_libraries_can_be_described():
    for name in torchvision.models.list_models(module=torchvision.models):
        specs.TORCHVISION("backbone", {"kind": "torchvision", "name": name, "kwargs": {}})
    for name in [*timm.list_models(), *timm.list_models(pretrained=True)]:
        specs.TIMM("backbone", {"kind": "timm", "name": name, "kwargs": {}})


# Refusals


class Asks(Net):
    def forward(self, x):
        return super().forward(x if x.shape[0] > 1 else x + 1)


class Two(Net):
    def forward(self, x):
        return super().forward(x), x


class Pair(nn.Module):
    def forward(self, x, y):
        return x + y


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = Net(), Net()

    def forward(self, x):
        return self.a(x) + self.b(x)


class Late(Parallel):
    """Two small blocks, then two large branches."""

    def __init__(self):
        super().__init__()
        self.first = nn.ModuleList([nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)])

    def forward(self, x):
        for layer in self.first:
            x = layer(x)
        return super().forward(x)


class Mixes(Net):
    def forward(self, x):
        return super().forward(x - x.mean(0, keepdim=True))


class Divides(Net):
    def forward(self, x):
        return super().forward(x / x.size(0))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Asks(), "forward can't be followed.*control flow"),
        (Two(), r"no single tensor but tuple. What works: .*return self.net\(x\)\[0\]"),
        (
            Net(end=lambda net, x: x.view(len(x), -1)),
            "asks for len.*works: x.shape.0. in its place",
        ),
        (Pair(), "its forward takes x, y, not one tensor"),
        (Parallel(), r"fewer than two places.*of \['a', 'b'\]"),
        (Late(), r"for the last time, 0% of the compute is done"),
        (Mixes(), "stage 0: a row's feature depends on the other rows"),
        (Divides(), r"stage 0: .* is the batch's size \(x.size\(0\)\) used for shapes alone"),
        (Net(end=lambda net, x: x if net.training else 2 * x), "in training than in eval.*mul"),
        (Net(end=lambda net, x: F.linear(x, torch.rand(8, 8))), "something else .*largest diff"),
        (nn.Conv1d(3, 3, 1), "doesn't run on an input of shape .*input_shape="),
    ],
)
def test_what_cannot_be_cut_is_refused_with_what_works(net, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        cuts.from_module(net, torch.zeros(1, *SHAPE))


class Named(NamedTuple):
    logits: torch.Tensor
    feature: torch.Tensor


@dataclass
class Outputs:
    logits: torch.Tensor


@pytest.mark.parametrize(
    ("give", "entry"),
    [
        (lambda x: {"logits": x}, "['logits']"),
        (lambda x: [x, x], "[0]"),
        (lambda x: Named(x, x), "[0]"),
        (lambda x: Outputs(logits=x), ".logits"),
    ],
)
def test_the_wrapper_that_gives_one_tensor_of_several_is_named_and_works(give, entry):
    class Gives(Vectors):
        def forward(self, x):
            return give(super().forward(x))

    class One(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return eval(f"self.net(x){entry}")

    net = Gives(lambda net, x: x).eval()
    with pytest.raises(ValueError, match=rf"return self.net\(x\){re.escape(entry)};"):
        mx.wrap(net, input_shape=(8,))
    backbone, x = mx.wrap(One(net), input_shape=(8,)), torch.randn(2, 8)
    assert torch.equal(whole(backbone.eval(), x), One(net)(x))


@pytest.mark.parametrize("options", [{}, {"input_shape": SHAPE}, {"stages": ["a"]}])
def test_what_takes_more_than_a_tensor_says_what_works(options):
    with pytest.raises(ValueError, match=r"this Pair: its forward takes x, y, .*wrap.register"):
        mx.wrap(Pair(), **options)


def test_detectors_are_no_classifiers():
    with pytest.raises(ValueError, match=r"no torchvision classifier 'fcn_resnet50'"):
        mx.wrap("torchvision:fcn_resnet50")


def test_nothing_is_left_in_the_network():
    class Makes(Net):
        def forward(self, x):
            return super().forward(x + torch.tensor([0.5]))

    net = Makes()
    names = set(vars(net)), set(net.state_dict())
    backbone = mx.wrap(net, input_shape=SHAPE).eval()
    assert (set(vars(net)), set(net.state_dict())) == names
    assert backbone.double().stages[0](torch.zeros(1, *SHAPE).double()).dtype is torch.float64


class Tokens(nn.Module):
    def __init__(self, table=True):
        super().__init__()
        self.table = nn.Embedding(30, 8) if table else nn.Parameter(torch.randn(30, 8))
        self.blocks = nn.ModuleList([nn.Linear(8, 8) for _ in range(4)])
        self.fc = nn.Linear(8, 5)

    def forward(self, ids):
        x = self.table(ids) if isinstance(self.table, nn.Module) else F.embedding(ids, self.table)
        for block in self.blocks:
            x = x + F.relu(block(x))
        return self.fc(x.mean(1))


@pytest.mark.parametrize("table", [True, False])
def test_a_network_whose_input_is_looked_up_takes_whole_numbers(table):
    net, ids = Tokens(table).eval(), torch.randint(30, (3, 12))
    backbone = mx.wrap(net, input_shape=(12,)).eval()
    assert backbone.num_stages == 4
    with torch.no_grad():
        assert torch.equal(whole(backbone, ids), net(ids))
    testing.check_backbone(backbone, {"x": ids})
    with pytest.raises(ValueError, match="starts with tokens: whole numbers"):
        backbone.features(torch.rand(3, 12))


def test_named_parts_that_begin_with_a_table_take_whole_numbers():
    net = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    backbone = mx.wrap(net, stem=["0"], stages=["1", "2"], input_shape=(12,))
    assert backbone.example_inputs()["x"].dtype == torch.long
