"""Networks of no library that graphs can't follow, and have a list of layers."""

import pytest
import timm
import torch
from torch import nn

import multiexit as mx
from multiexit.backbones.layers import recorded_module
from multiexit.backbones.layers.recorded import RecordedBackbone


class Looping(nn.Module):
    """Looks at its values, adds a position to each layer's arguments, and normalises at the end."""

    def __init__(self, mixes=False, between=False, beside=False, more=False):
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.layers = nn.ModuleList(Gated() for _ in range(4))
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 3)
        self.mixes, self.between, self.beside, self.more = mixes, between, beside, more

    def forward(self, x):
        if bool(x.isnan().any()):
            raise ValueError("NaN")
        x = self.stem(x)
        shift = x.mean(0 if self.mixes else 1, keepdim=True)
        for layer in self.layers:
            x = layer(x, shift)
            x = x + 1 if self.between else x
        logits = self.fc(self.norm(x).relu())
        logits = logits + shift if self.beside else logits
        return (logits, x) if self.more else logits


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, shift):
        return x + self.linear(x).tanh() * shift


def test_its_layers_are_stages_and_its_head_the_last_exit():
    torch.manual_seed(0)
    network = Looping().eval()
    backbone = mx.wrap(network, input_shape=(6,))
    assert isinstance(backbone, RecordedBackbone)
    assert (backbone.num_stages, backbone.feature_shapes) == (4, [(8,)] * 4)
    model = mx.MultiExitModel(backbone, 3).eval()
    x = torch.randn(7, 6)
    assert torch.equal(model(x)[-1], network(x))
    together = model.predict(mx.MaxProb(0.5), x)
    alone = torch.cat([model.predict(mx.MaxProb(0.5), row[None]).exit_B for row in x])
    assert torch.equal(together.exit_B, alone)


def test_training_moves_what_the_network_s_own_training_moves():
    torch.manual_seed(0)
    network = Looping()
    x, y = torch.randn(5, 6), torch.tensor([0, 1, 2, 0, 1])
    nn.functional.cross_entropy(network(x), y).backward()
    gradients = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    model = mx.MultiExitModel(mx.wrap(network, input_shape=(6,)), 3, exits=[3]).train()
    nn.functional.cross_entropy(model(x)[-1], y).backward()
    for gradient, p in zip(gradients, network.parameters(), strict=True):
        torch.testing.assert_close(p.grad, gradient)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Looping(mixes=True), "rows share and that depends on what is in them"),
        (Looping(between=True), "no list of layers"),
        (Looping(beside=True), "'layers.3' to its answer can't be told"),
        (Looping(more=True), "gives a tuple"),
    ],
)
def test_what_is_another_network_is_refused(network, reason):
    with pytest.raises(ValueError, match=reason):
        mx.wrap(network, input_shape=(6,))


def test_it_is_staged_again_from_its_description():
    torch.manual_seed(0)
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=3, num_heads=3, num_classes=5
    ).eval()
    example = torch.zeros(1, 3, 32, 32)
    spec = {"kind": "timm", "name": "x", "kwargs": {}}
    backbone = recorded_module.from_module(network, example, None, spec)
    assert backbone.layouts == ["tokens"] * 3
    again = recorded_module.stage(network, example, backbone.spec)
    x = torch.randn(2, 3, 32, 32)
    for one, other in zip(backbone.features(x), again.features(x), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(again.classifier(again.features(x)[-1]), network(x))
