"""Networks that keep something from one call to the next: as the network's own, or refused."""

import copy
import operator

import pytest
import torch
from torch import nn

import multiexit as mx


class Net(nn.Module):
    """Residual blocks between what a test gives."""

    def __init__(self, act=None, block=None, centre=None):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(block() if block else Plain() for _ in range(4))
        self.centre = centre() if centre else nn.Identity()
        self.fc, self.scale = nn.Linear(8, 5), nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("steps", torch.zeros(()))
        self.calls, self.seen, self.size, self.cache, self.act = 0, [], None, {}, act

    def forward(self, x):
        self.size, self.cache[str(x)] = x.shape[2], x
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        f = x.mean((2, 3))
        if self.act:
            self.act(self, f)
        return self.fc(self.centre(f - self.mean) * self.scale)


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu()


class Counting(Plain):
    """A block of several layers that counts, in more than one way."""

    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8))
        self.calls, self.seen = 0, []

    def forward(self, x):
        if self.training:
            self.steps.data += 1
            self.mean.data.mul_(0.9).add_(x.detach().mean((0, 2, 3)), alpha=0.1)
            self.calls += 1
        return super().forward(x)


class Noting(nn.Module):
    """Blocks in a row, with notes of each call that no other call reads."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Plain() for _ in range(3))
        self.height, self.maps = 0, []

    def forward(self, x):
        self.height, self.width, self.maps = x.shape[2], x.shape[3], []
        for block in self.blocks:
            x = block(x)
            self.maps.append(x)
        return x


class Centre(nn.Module):
    """A running mean, as DINO's, taken off."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class Tracker(nn.Module):
    """Keeps a mean, gives nothing."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        self.mean.copy_(x.detach().mean(0))


class Tracked(nn.Sequential):
    def __init__(self):
        super().__init__(Tracker(), nn.Identity())

    def forward(self, x):
        self[0](x)
        return self[1](x)


def running_mean(net, f):
    if net.training:
        with torch.no_grad():
            net.mean.mul_(0.9).add_(0.1 * f.mean(0))


WRITES = {
    "a running mean in training": (running_mean, "mean"),
    "a running mean without mul_": (lambda net, f: net.mean.add_(f.detach().mean(0)), "mean"),
    "past autograd": (lambda net, f: net.mean.data.copy_(f.mean(0)), "mean"),
    "one value": (lambda net, f: net.mean.__setitem__(0, f.mean()), "mean"),
    "a sum": (lambda net, f: operator.iadd(net.mean, f.detach().mean(0)), "mean"),
    "a view": (lambda net, f: net.mean[:4].copy_(f[0, :4]), "mean"),
    "a count": (lambda net, f: net.steps.add_(1), "steps"),
    "a count past autograd": (lambda net, f: net.steps.data.add_(1), "steps"),
    "another buffer": (lambda net, f: setattr(net, "steps", net.steps + 1), "steps"),
    "a parameter": (lambda net, f: net.scale.data.clamp_(0, 4), "scale"),
    "a parameter of a layer": (lambda net, f: net.stem.weight.detach().mul_(0.9), "stem.weight"),
    "a number": (lambda net, f: setattr(net, "calls", net.calls + 1), "calls"),
    "a list": (lambda net, f: net.seen.append(f), "seen"),
}


@pytest.mark.parametrize("write", WRITES)
def test_what_a_forward_keeps_is_refused_and_the_network_stays_as_it_was(write):
    act, name = WRITES[write]
    net = Net(act)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(
        ValueError, match=rf"it writes to {name}, which.*What works: let a module of"
    ):
        mx.wrap(net, input_shape=(3, 16, 16))
    assert (net.calls, net.seen, net.size, net.cache) == (0, [], None, {})
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_a_layer_is_run_for_is_refused():
    net = Net(lambda net, f: net.tracker(f))
    net.tracker = Tracker()
    with pytest.raises(ValueError, match=r"runs tracker for what that keeps.*What works: let"):
        mx.wrap(net, input_shape=(3, 16, 16))


@pytest.mark.parametrize("parts", [{"block": Counting}, {"centre": Centre}, {"centre": Tracked}])
def test_what_a_module_on_the_way_keeps_moves_as_in_the_network(parts):
    torch.manual_seed(0)
    net, x = Net(**parts), torch.randn(4, 3, 16, 16)
    own = copy.deepcopy(net)
    backbone = mx.wrap(net, input_shape=(3, 16, 16))
    staged = nn.ModuleList([net, backbone, backbone.classifier])
    for training in (True, True, False):
        staged.train(training)
        answers = backbone.classifier(backbone.features(x)[-1])
        assert torch.equal(answers, own.train(training)(x))
    ours, theirs = (dict(n.named_buffers()) for n in (net, own))
    assert any(buffer.any() for buffer in theirs.values())
    assert all(torch.equal(ours[name], buffer) for name, buffer in theirs.items())
    assert {getattr(block, "calls", 2) for block in net.blocks} == {2}


def note(net, f):
    net.calls, net.width, net.seen, net.maps = f.shape[1], f.shape[1], [], [f]
    net.seen.append(f / net.calls)


@pytest.mark.parametrize("runs", [0, 1])
@pytest.mark.parametrize(("parts", "stages"), [({"act": note}, 5), ({"block": Noting}, 13)])
def test_what_each_call_notes_anew_is_not_kept_also_after_a_run(parts, stages, runs):
    net, x = Net(**parts).eval(), torch.randn(4, 3, 16, 16)
    for _ in range(runs):
        net(x)
    backbone = mx.wrap(net, input_shape=(3, 16, 16))
    assert backbone.num_stages == stages
    assert torch.equal(backbone.classifier(backbone.features(x)[-1]), net(x))


def test_what_is_made_of_a_parameter_may_be_written_to():
    class Places(Net):
        def forward(self, x):
            table = self.scale.clone()
            table += 1
            return super().forward(x * table)

    assert mx.wrap(Places(), input_shape=(3, 16, 16)).num_stages > 2
