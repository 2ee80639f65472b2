"""Backbones: stages equal the library's own forward, to the last bit."""

import copy
import io
import os
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
    T5Config,
    T5Model,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
)

import multiexit as mx
from multiexit import testing
from multiexit.backbones.same import without_init

DATA = os.environ.get("MULTIEXIT_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="MULTIEXIT_DATA is not set")

TINY = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
TEXT = {
    "bert": BertConfig(**TINY),
    "albert": AlbertConfig(**TINY, embedding_size=8),
    "albert-2-groups": AlbertConfig(**TINY, embedding_size=8, num_hidden_groups=2),
    "albert-4-groups": AlbertConfig(**TINY, embedding_size=8, num_hidden_groups=4),
    "albert-inner": AlbertConfig(**TINY, num_hidden_groups=2, inner_group_num=2),
    "roberta": RobertaConfig(**TINY, type_vocab_size=2),
    "electra": ElectraConfig(**TINY, embedding_size=16),
    "electra-projected": ElectraConfig(**TINY, embedding_size=8),
    "distilbert": DistilBertConfig(
        vocab_size=60, dim=16, n_layers=4, n_heads=2, hidden_dim=32, max_position_embeddings=40
    ),
}


def encoder(name: str, attention: str = "sdpa"):
    torch.manual_seed(0)
    config = copy.deepcopy(TEXT[name])
    return AutoModel.from_config(config, attn_implementation=attention).eval()


def without(inputs: dict, *names: str) -> dict:
    return {key: value for key, value in inputs.items() if key not in names}


# Text


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TEXT)
def test_staged_text_equals_the_library_s_hidden_states(name, attention, text):
    model, inputs = encoder(name, attention), text(5)
    inner = getattr(model.config, "inner_group_num", 1)  # the library tells each inner layer
    if name == "distilbert":  # it knows no token types
        inputs = without(inputs, "token_type_ids")
    for some in (
        inputs,
        without(inputs, "attention_mask"),
        without(inputs, "token_type_ids"),
        {"input_ids": inputs["input_ids"]},
        {**inputs, "attention_mask": torch.ones_like(inputs["attention_mask"])},
    ):
        with torch.no_grad():
            theirs = model(**some, output_hidden_states=True).hidden_states[1:]
            theirs = theirs[inner - 1 :: inner]
            ours = mx.wrap(model).features(**some)
        assert len(ours) == len(theirs) == 4
        for layer, (mine, wanted) in enumerate(zip(ours, theirs, strict=True)):
            assert torch.equal(mine, wanted), f"layer {layer} of {name}, {sorted(some)}"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TEXT)
def test_text_conforms(name, attention, text):
    testing.check_backbone(mx.wrap(encoder(name, attention)), text(5))


def test_positions_and_embeddings_are_passed_on(text):
    model, inputs = encoder("bert"), text(3)
    positions = torch.arange(9).flip(0).expand(3, 9)
    embedded = model.embeddings.word_embeddings(inputs["input_ids"])
    for some in (
        {**inputs, "position_ids": positions},
        {"inputs_embeds": embedded, "attention_mask": inputs["attention_mask"]},
    ):
        with torch.no_grad():
            wanted = model(**some, output_hidden_states=True).hidden_states[1:]
            assert all(map(torch.equal, mx.wrap(model).features(**some), wanted))


def test_albert_s_groups_are_shared_and_in_the_paper_s_order():
    backbone = mx.wrap(encoder("albert-2-groups"))
    modules = [backbone.stage_module(i) for i in range(4)]
    assert modules[0] is modules[1]
    assert modules[2] is modules[3]
    assert modules[1] is not modules[2]


@pytest.mark.parametrize("name", ["bert", "albert", "roberta", "electra", "distilbert"])
def test_a_task_model_is_wrapped_around_its_encoder(name, text):
    task = AutoModelForSequenceClassification.from_config(copy.deepcopy(TEXT[name])).eval()
    backbone, inputs = mx.wrap(task), without(text(3), "token_type_ids")
    with torch.no_grad():
        wanted = task(**inputs, output_hidden_states=True).hidden_states[1:]
        assert all(map(torch.equal, backbone.features(**inputs), wanted))
    mine = {p.data_ptr() for p in backbone.parameters()}
    assert mine <= {p.data_ptr() for p in task.parameters()}, "weights were copied"


def test_a_folder_is_loaded_in_float32_with_the_options_it_was_given(tmp_path, text):
    encoder("bert").half().save_pretrained(tmp_path)
    backbone = mx.wrap(str(tmp_path), attn_implementation="eager")
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
    assert backbone.config._attn_implementation == "eager"
    assert mx.MultiExitModel(backbone, 2)(**text(2)).dtype == torch.float32


def test_inputs_that_contradict_each_other_are_named(text):
    backbone = mx.wrap(encoder("bert"))
    for inputs in ({}, {**text(2), "inputs_embeds": torch.zeros(2, 9, 16)}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            backbone.features(**inputs)


# Images


VITS = {"img_size": 32, "depth": 3, "embed_dim": 24, "num_heads": 2, "num_classes": 7}
TIMM = {
    "vit_tiny_patch16_224": VITS,
    "deit_tiny_patch16_224": VITS,
    "deit_tiny_distilled_patch16_224": VITS,
    "vit_base_patch16_clip_224": VITS,  # pre-norm
    "test_vit2": {"num_classes": 7},  # averaged, registers
    "resnet10t": {"num_classes": 7},  # deep stem
    "test_resnet": {"num_classes": 7},
    "test_convnext": {"num_classes": 7},
}


@pytest.mark.parametrize("name", TIMM)
def test_staged_timm_equals_its_forward_features(name):
    model = timm.create_model(name, **TIMM[name]).eval()
    backbone = mx.wrap(model).eval()
    x = torch.randn(2, *backbone.example_inputs()["x"].shape[1:])
    with torch.no_grad():
        assert torch.equal(backbone.features(x)[-1], model.forward_features(x))
    testing.check_backbone(backbone)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_resnet", "resnet10t"])
def test_timm_s_last_exit_starts_as_its_classifier(name):
    model = timm.create_model(name, **TIMM[name]).eval()
    ours = mx.MultiExitModel(mx.wrap(model), 7).eval()
    x = torch.randn(2, *ours.backbone.example_inputs()["x"].shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(ours(x)[-1], model(x))


def test_a_timm_vit_has_its_final_norm_at_every_exit():
    model = timm.create_model("vit_tiny_patch16_224", **VITS).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs = model.get_intermediate_layers(x, n=3, return_prefix_tokens=True, norm=True)
        ours = mx.wrap(model).features(x)
    for mine, (patches, prefix) in zip(ours, theirs, strict=True):
        assert torch.equal(mine, torch.cat([prefix, patches], 1))


def test_timm_of_other_channels_by_name():
    backbone = mx.wrap("timm:test_resnet", in_chans=1)
    assert backbone.example_inputs(2)["x"].shape[:2] == (2, 1)


def test_what_is_made_to_be_compared_only_ends_whatever_lies_in_memory():
    """Initialisers that draw until every number is in range never would, of numbers not drawn."""
    with without_init():
        weight = nn.Parameter(torch.full((4, 4), 1e30))
        nn.init.trunc_normal_(weight)
    assert weight.isfinite().all()
    assert weight.abs().max() <= 2


def small_torchvision(kind: str):
    if kind == "vit":
        return torchvision.models.VisionTransformer(32, 8, 3, 2, 24, 48, num_classes=7)
    block = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(block, [1, 2, 1, 1], num_classes=7)


@pytest.mark.parametrize(("kind", "size", "stages"), [("vit", 32, 3), ("resnet", 64, 5)])
def test_torchvision_s_last_exit_gives_its_own_logits(kind, size, stages):
    model = small_torchvision(kind).eval()
    nn.init.normal_(model.heads[-1].weight if kind == "vit" else model.fc.weight)
    ours = mx.MultiExitModel(mx.wrap(model), 7).eval()
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert ours(x).shape == (stages, 2, 7)
        torch.testing.assert_close(ours(x)[-1], model(x), atol=1e-5, rtol=1e-5)
    testing.check_backbone(ours.backbone)


def test_torchvision_by_name():
    backbone = mx.wrap("torchvision:resnet18", num_classes=3)
    assert backbone.num_stages == 8
    assert backbone.feature_shapes[-1] == (512, 7, 7)
    assert backbone.classifier.num_classes == 3


# CIFAR ResNets


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_cifar_resnets_have_the_known_size(depth, parameters):
    backbone = mx.cifar_resnet(depth)
    assert backbone.num_stages == (depth - 2) // 2
    assert sum(p.numel() for p in backbone.parameters()) + 650 == parameters


def test_cifar_resnet_56_has_the_decided_size():
    model = mx.MultiExitModel(mx.cifar_resnet(56), 10)
    assert model.num_exits == 27
    assert sum(p.numel() for p in model.backbone.parameters()) == 852_368
    assert model.cost().full_macs / 1e6 == pytest.approx(125.5, abs=0.05)


def test_a_block_is_he_et_al_s_with_option_a():
    backbone = mx.cifar_resnet(20).eval()
    shapes = [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3
    assert backbone.feature_shapes == shapes
    block, x = backbone.stage_module(3), torch.randn(2, 16, 8, 8)
    y = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    shortcut = torch.zeros(2, 32, 4, 4)
    shortcut[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), torch.relu(y + shortcut))
    testing.check_backbone(backbone)


def as_published(backbone) -> dict[str, torch.Tensor]:
    """The usual names: conv1, bn1, layer1.0.conv1, …, linear."""
    tensors = {f"{k}": v for k, v in backbone.stem.state_dict().items()}
    per_group = backbone.num_stages // 3
    for index in range(backbone.num_stages):
        group, block = divmod(index, per_group)
        state = backbone.stage_module(index).state_dict()
        tensors |= {f"layer{group + 1}.{block}.{k}": v for k, v in state.items()}
    return tensors | {"linear.weight": torch.randn(10, 64), "linear.bias": torch.randn(10)}


def test_weights_of_the_usual_layout(tmp_path):
    from safetensors.torch import save_file

    first = mx.cifar_resnet(20).eval()
    tensors = as_published(first)
    save_file(tensors, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        second = mx.wrap("cifar-resnet-20", weights=path).eval()
        x = torch.randn(2, 3, 32, 32)
        assert torch.equal(second.features(x)[-1], first.features(x)[-1])
        assert torch.equal(
            mx.MultiExitModel(second, 10).heads[-1].linear.bias, tensors["linear.bias"]
        )
    for depth in (32, 56):
        with pytest.raises(ValueError, match="don't fit this ResNet"):
            mx.cifar_resnet(depth, weights=tmp_path)
    save_file({**tensors, "conv1.weight": torch.zeros(16, 3, 5, 5)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="don't fit this ResNet"):
        mx.cifar_resnet(20, weights=tmp_path / "odd.safetensors")
    (tmp_path / "short.safetensors").write_bytes(
        (tmp_path / "model.safetensors").read_bytes()[:5000]
    )
    with pytest.raises(ValueError, match=r"short\.safetensors"):
        mx.cifar_resnet(20, weights=tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match="no weights at"):
        mx.cifar_resnet(20, weights=tmp_path / "nowhere")


@needs_data
@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_published_weights_load(depth):
    folder = Path(str(DATA), "checkpoints", f"resnet{depth}-cifar10")
    assert mx.cifar_resnet(depth, weights=folder).classifier.linear.weight.shape == (10, 64)


@needs_data
def test_published_weights_know_cifar():
    folder = Path(str(DATA))
    file = pq.ParquetFile(folder / "cifar10/plain_text/test-00000-of-00001.parquet")
    table = next(file.iter_batches(500)).to_pydict()
    pixels = [
        np.array(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in table["img"]
    ]
    x = torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (x - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    backbone = mx.cifar_resnet(20, weights=folder / "checkpoints/resnet20-cifar10")
    model = mx.MultiExitModel(backbone, 10, exits=[8]).eval()
    answers, _ = model.predict(mx.FixedExit(0), x)
    assert (answers.argmax(-1) == torch.tensor(table["label"])).float().mean() > 0.88


# Chains and one's own


class Net(nn.Module):
    """A network whose parts have names."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.ModuleDict({"a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 6, 1, stride=2)})
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.body["b"](self.body["a"](self.conv(x))).mean((2, 3)))


def test_each_child_of_a_sequential_is_a_stage():
    chain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    backbone = mx.wrap(chain)
    assert backbone.feature_shapes == [(8,), (8,), (3,)]
    x = torch.randn(5, 4)
    assert torch.equal(backbone.features(x)[-1], chain(x))
    assert torch.equal(backbone.features(x)[0], chain[0](x))
    testing.check_backbone(backbone)


def test_tokens_and_images_in_a_sequential():
    tokens = mx.wrap(nn.Sequential(nn.Embedding(20, 6), nn.Linear(6, 5)))
    assert tokens.feature_shapes == [(None, 6), (None, 5)]
    testing.check_backbone(tokens, {"x": torch.randint(20, (4, 7))})
    images = mx.wrap(nn.Sequential(nn.ReLU(), nn.Conv2d(1, 2, 3)), input_shape=(1, 9, 9))
    assert images.feature_shapes == [(1, 9, 9), (2, 7, 7)]
    testing.check_backbone(images)


def test_named_stages_and_stem():
    net = Net().eval()
    backbone = mx.wrap(net, stem=["conv"], stages=["body.a", net.body["b"]])
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        model = mx.MultiExitModel(backbone, 2).eval()
        model.heads[-1].linear.load_state_dict(net.fc.state_dict())
        torch.testing.assert_close(model(x)[-1], net(x))
    assert backbone.feature_shapes == [(4, 32, 32), (6, 16, 16)]
    testing.check_backbone(backbone)


def test_making_a_backbone_changes_nothing_in_the_module():
    norm = nn.BatchNorm1d(4)
    chain = nn.Sequential(nn.Linear(4, 4), norm, nn.Dropout(0.5)).train()
    chain[0].eval()
    before = copy.deepcopy(chain.state_dict())
    mx.wrap(chain)
    assert all(torch.equal(before[k], v) for k, v in chain.state_dict().items())
    assert [m.training for m in chain] == [False, True, True]


def test_parts_beside_named_stages_are_said_once_no_head_is_named():
    network = nn.ModuleDict({"body": nn.Linear(8, 8), "more": nn.Linear(8, 8)})
    network.head = nn.Linear(8, 3)
    network.forward = lambda x: network.head(network["more"](network["body"](x)))
    options = {"stages": ["body", "more"], "input_shape": (8,)}
    with pytest.warns(UserWarning, match="head of ModuleDict are in no stage"):
        mx.wrap(network, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mx.wrap(network, **options, classifier="head")


def test_a_scripted_module_is_refused():
    network = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)))
    for options in ({"input_shape": (8,)}, {"stages": ["0"], "classifier": "1"}):
        with pytest.raises(ValueError, match="wrap it before scripting"):
            mx.wrap(network, **options)


def test_a_network_without_parameters_is_refused():
    with pytest.raises(ValueError, match="no parameters"):
        mx.wrap(nn.Sequential(nn.ReLU(), nn.Tanh()), input_shape=(4,))


@pytest.mark.parametrize("pools", [True, False])
def test_a_video_classifiers_head_is_the_last_exit(pools):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "image_size": 16, "patch_size": 8, "num_frames": 2}
    network = VideoMAEForVideoClassification(
        VideoMAEConfig(**sizes, num_labels=4, use_mean_pooling=pools)
    ).eval()
    model, x = mx.MultiExitModel(mx.wrap(network), 4).eval(), torch.rand(2, 2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(pixel_values=x)[-1], network(pixel_values=x).logits)
    if pools:  # by its norm, which is left out here
        with pytest.raises(ValueError, match="largest difference"):
            mx.wrap(network, classifier="classifier")
    else:
        named = mx.MultiExitModel(mx.wrap(network, classifier="classifier"), 4).eval()
        with torch.no_grad():
            assert torch.equal(named(pixel_values=x)[-1], network(pixel_values=x).logits)


class Counting(nn.Linear):
    """Counts its runs, in place and anew, and keeps a running mean."""

    def __init__(self):
        super().__init__(8, 8)
        self.register_buffer("runs", torch.zeros(()))
        self.register_buffer("rows", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        self.runs += 1
        self.rows = self.rows + len(x)
        self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return super().forward(x)


@pytest.mark.parametrize("options", [{}, {"stages": ["0", "1"], "input_shape": (8,)}])
def test_wrapping_leaves_buffers_as_they_were(options):
    network = nn.Sequential(Counting(), Counting())
    mx.wrap(network, **options)
    assert [b.abs().sum().item() for b in network.buffers()] == [0.0] * 6
    network(torch.ones(2, 8))
    assert (network[0].runs, network[0].rows) == (1, 2)


def test_a_backbone_is_its_own_wrap(make_backbone):
    backbone = make_backbone("mlp")
    assert mx.wrap(backbone) is backbone


class Tower(nn.Module):
    """A class of the user's own, with a state beside x, for which he registers an adapter."""

    def __init__(self, depth: int = 3):
        super().__init__()
        self.floors = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))


class TowerBackbone(mx.Backbone):
    def __init__(self, tower: Tower):
        super().__init__(feature_shapes=[(4,)] * len(tower.floors))
        self.floors = tower.floors

    def start(self, x):
        return {"x": x, "memory": {"first": x, "nothing": None}}

    def stage(self, carry, index):
        x = torch.tanh(self.floors[index](carry["x"])) + carry["memory"]["first"]
        return {**carry, "x": x}, x

    def stage_module(self, index):
        return self.floors[index]

    def example_inputs(self, batch=1):
        return {"x": torch.zeros(batch, 4)}


def test_an_adapter_is_registered_with_one_function():
    with pytest.raises(ValueError, match=r"can't wrap this Tower.*wrap.register"):
        mx.wrap(Tower())

    @mx.wrap.register(Tower)
    def _(module, **kwargs):
        return TowerBackbone(module)

    backbone = mx.wrap(Tower())
    testing.check_backbone(backbone, {"x": torch.randn(5, 4)})
    model = mx.MultiExitModel(backbone, 3).eval()
    answers, _exit_B = model.predict(mx.MaxProb(0.4), torch.randn(9, 4))
    assert answers.shape == (9, 3)


class Cottage(Tower):
    """Another one, whose adapter takes nothing else."""


def test_what_an_adapter_does_not_take_is_refused_by_name():
    @mx.wrap.register(Cottage)
    def _(module):
        return TowerBackbone(module)

    with pytest.raises(ValueError, match=r"this Cottage takes no input_shape=, but nothing besi"):
        mx.wrap(Cottage(), input_shape=(4,))
    with pytest.raises(ValueError, match=r"this Sequential takes no pretrained=, but stages, stem"):
        mx.wrap(mlp(), pretrained=True)
    with pytest.raises(ValueError, match=r"this TowerBackbone takes no stages=, but classifier"):
        mx.wrap(mx.wrap(Cottage()), stages=["floors"])


# Refusals


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: mx.wrap(3), "can't wrap this int. What works: a hub name"),
        (lambda: mx.wrap(nn.Conv2d(3, 3, 1)), r"can't wrap this Conv2d by itself.*stages="),
        (lambda: mx.wrap("cifar-resnet-21"), r"of depth 21, the nearest is 20; depths are 6n \+ 2"),
        (lambda: mx.wrap("cifar-resnet-x"), r"depth 'x'; depths are 6n \+ 2: 20, 32, 44, 56, 110"),
        (lambda: mx.cifar_resnet(18), r"no CIFAR ResNet of depth 18, the nearest is 20"),
        (lambda: mx.wrap("timm:resnet50d_x"), r"'resnet50d_x': did you mean 'resnet50d'.*list_mod"),
        (lambda: mx.wrap("timm:zzz"), r"timm model 'zzz'; there are \d+, see timm.list_models"),
        (lambda: mx.wrap("torchvision:resnte18"), r"no torchvision .*did you mean 'resnet18'\?"),
        (lambda: mx.wrap("timm:crossvit_tiny_240"), r"can't cut this CrossVit .*stages=.*norm"),
        (lambda: mx.wrap("no such name"), r"no model 'no such name': it is no folder.*What works"),
        (lambda: mx.wrap("ResNet-50"), "mean 'timm:resnet50' or 'torchvision:resnet50'"),
        (lambda: mx.wrap("cifar_resnet56"), "Did you mean 'cifar-resnet-56'"),
        (lambda: mx.wrap(T5Config()), r"T5Config, which has no weights.*from_config\(config\)"),
        (lambda: mx.wrap(nn.Linear), "can't wrap Linear, a class"),
        (lambda: mx.wrap(nn.LSTM(4, 4), input_shape=(5, 4)), "has no parts that could be stages"),
        (lambda: mx.wrap(mlp(), stages=["0", "1"], classifier="1"), "'1' is a stage and in class"),
        (lambda: mx.wrap(nn.Sequential(), input_shape=(3,)), "at least one stage"),
        (lambda: mx.wrap(nn.Sequential(nn.ReLU())), "pass input_shape="),
        (lambda: mx.wrap(nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3))), "don't run as a chain"),
        (lambda: mx.wrap(nn.Sequential(nn.Linear(4, 3), Pair())), "stage 1 gives no .* but tuple"),
        (lambda: mx.wrap(Net(), stages=["body.c"]), r"no module 'body.c'.*\['a', 'b'\]"),
        (lambda: mx.wrap(Net(), stages=["nose"]), r"no module 'nose'.*\['conv', 'body', 'fc'\]"),
        (lambda: mx.wrap(mlp(), stages="0"), "lists of names"),
        (lambda: mx.wrap(mlp(), stem=["0"]), "stages"),
        (lambda: mx.wrap(small_torchvision("vit"), input_shape=(3, 8, 8)), "input_shape"),
        (
            lambda: mx.wrap(T5Model(T5Config(d_model=8, d_ff=8, d_kv=4, num_layers=1, num_heads=2,
                                             vocab_size=9))),
            "an encoder and a decoder.*T5EncoderModel",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_wrapped_is_named_with_what_can(make, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make()


# The check itself


class Stretched(TowerBackbone):
    def start(self, x):
        return {"x": x, "memory": {"first": x, "table": torch.zeros(7, 2)}}


class Crowd(TowerBackbone):
    def stage(self, carry, index):
        x = carry["x"] - carry["x"].mean(0)
        return {**carry, "x": x}, x


class Misshapen(TowerBackbone):
    def __init__(self, tower):
        super().__init__(tower)
        self.feature_shapes = [(4,), (5,), (4,)]


class Forgetful(TowerBackbone):
    def features(self, *args, **inputs):
        return super().features(*args, **inputs)[:-1]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Stretched, r"start\(\)'s carry\['memory'\]\['table'\] must have 5 rows"),
        (Crowd, "stage 0: rows change when others leave"),
        (Misshapen, r"stage 1: feature_shapes says \(5,\), the feature has \(4,\)"),
        (Forgetful, "2 features, 3 stages"),
    ],
)
def test_the_check_catches_wrong_ones(kind, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_backbone(kind(Tower()), {"x": torch.randn(5, 4)})


def test_the_check_catches_a_spec_that_rebuilds_something_else():
    backbone = mx.cifar_resnet(20)
    backbone.spec = {**backbone.spec, "in_channels": 1}
    with pytest.raises(AssertionError, match=r"other tensors: \['stem.conv1.weight'\]"):
        testing.check_backbone(backbone)


class Doubled(BertForSequenceClassification):
    """Answers otherwise than its class in the library does."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output


def test_a_classifier_with_a_forward_of_its_own_loses_its_head_with_a_warning():
    with pytest.warns(UserWarning, match="forward of its own, so its head isn't kept"):
        backbone = mx.wrap(Doubled(BertConfig(**TINY)).eval())
    assert backbone.classifier is None
