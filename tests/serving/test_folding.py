"""Batch norms are folded where a convolution alone feeds them, and answers stay."""

import copy
import pickle
import threading
from functools import partial

import pytest
import timm
import torch
import torchvision
from helpers import chain
from torch import nn
from torch.nn.utils import prune

import multiexit as mx
from multiexit.serving.folding import for_inference


class Odd(nn.Module):
    """A block that `kind` makes hard to fold."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)
        if kind == "no statistics":
            self.norm = nn.BatchNorm2d(4, track_running_stats=False)
        if kind == "not affine":
            self.norm = nn.BatchNorm2d(4, affine=False)

    def forward(self, x):
        y = self.conv(x)
        if self.kind == "read twice":
            return self.norm(y) + y
        if self.kind == "run twice":
            return self.norm(self.conv(torch.relu(y)))
        if self.kind == "two norms":
            return self.norm(y) * self.other(y)
        if self.kind == "changed between":
            return self.norm(y * 2)
        if self.kind == "norm run twice":
            return self.norm(torch.relu(self.norm(y)))
        return torch.relu(self.norm(y))


ODD = ["read twice", "run twice", "two norms", "changed between", "norm run twice"]
ODD += ["no statistics", "not affine"]


def odd(kind: str) -> mx.Backbone:
    parts = [nn.Conv2d(3, 4, 3), Odd(kind), Odd(kind), nn.ReLU()]
    return mx.SequentialBackbone(nn.Identity(), parts, torch.zeros(1, 3, 8, 8))


NETWORKS = {  # how, and how many batch norms stay
    "cifar resnet": (lambda: mx.cifar_resnet(20), 0),
    "torchvision resnet18": (lambda: mx.wrap(torchvision.models.resnet18()), 0),
    "timm resnet10t": (lambda: mx.wrap(timm.create_model("resnet10t")), 0),
    "timm efficientnet": (lambda: mx.wrap("timm:test_efficientnet"), 0),
    "torchvision mobilenet": (
        lambda: mx.wrap(
            torchvision.models.mobilenet_v2(), stem=["features.0"], stages=["features.1"]
        ),
        0,
    ),
    "plain": (lambda: odd("plain"), 2),  # those that are never run
    **{kind: (lambda kind=kind: odd(kind), None) for kind in ODD},
}


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) and m.num_features > 0 for m in model.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_stay(name):
    torch.manual_seed(0)
    make, left = NETWORKS[name]
    model = mx.MultiExitModel(make(), 3).eval()
    for module in model.modules():  # statistics that folding must reckon with
        if isinstance(module, nn.BatchNorm2d):
            for part, low in ((module.weight, 0.5), (module.running_var, 0.5)):
                if part is not None:
                    part.data.uniform_(low, 2)
            for part in (module.bias, module.running_mean):
                if part is not None:
                    part.data.uniform_(-0.5, 0.5)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    shape = next(iter(model.backbone.example_inputs().values())).shape[1:]
    x = torch.randn(5, *shape)
    folded = for_inference(model)
    with torch.no_grad():
        wanted = model(x)
        scale = float(wanted.abs().max())
        torch.testing.assert_close(folded(x), wanted, atol=1e-4 * scale, rtol=1e-3)
    if left is not None:
        assert norms(model) > norms(folded) == left
    if name in ODD:
        assert any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())  # a copy


class Clipped(nn.BatchNorm2d):
    """A norm that is more than one."""

    def forward(self, x):
        return super().forward(x).clamp(-2, 2)


class Tricky(nn.Module):
    """A block that one run of small numbers says little of, or that can't be copied or run so."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)
        match kind:
            case "norm of one's own":
                self.norm = Clipped(4)
            case "forward replaced":
                norm = self.norm
                norm.forward = lambda x: nn.BatchNorm2d.forward(norm, x).clamp(-2, 2)
            case "hook":
                self.norm.register_forward_hook(lambda m, args, out: out.clamp(max=0.5))
            case "pruned":
                prune.random_unstructured(self.conv, "weight", 0.5)
            case "scripted":
                self.scripted = torch.jit.script(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))
            case "lock":
                self.lock = threading.Lock()
            case "five dimensions":
                self.volume = nn.Conv3d(1, 1, 1)

    def forward(self, x):
        y = self.conv(x)
        match self.kind:
            case "masked":
                y.masked_fill_((x.abs() < 0.05).all(1, keepdim=True), 3.0)
            case "clipped in place":
                y.clamp_(-2, 2)
            case "by size" if y.shape[-1] <= 4:
                return y
            case "by rows" if len(x) == 1:
                return y
            case "by numbers" if x.abs().max() > 8:
                return self.other(y)
            case "view":
                return self.norm(y).view(len(y), -1)[:, :64].view(-1, 4, 4, 4)
            case "strided":
                return self.norm(y).as_strided((len(y), 4, 4, 4), (y[0].numel(), 16, 4, 1))
            case "read by its name":
                return self.norm(y) * self.norm.num_features
            case "kept":
                self.seen = y
            case "named argument":
                return self.norm(input=y)
            case "five dimensions":
                y = self.volume(y.unsqueeze(1)).squeeze(1)
            case "scripted":
                y = self.scripted(y)
        return torch.relu(self.norm(y))


TRICKY = ["norm of one's own", "forward replaced", "hook", "pruned", "scripted", "lock"]
TRICKY += ["five dimensions", "masked", "clipped in place", "by size", "by rows", "by numbers"]
TRICKY += ["view", "strided", "read by its name", "kept", "named argument"]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", TRICKY)
def test_what_is_hard_to_copy_is_answered_as_ever(kind):
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3, padding=1), Tricky(kind), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)]
    backbone = mx.SequentialBackbone(nn.Identity(), parts, torch.zeros(1, 3, 8, 8))
    model = mx.MultiExitModel(backbone, 3).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    model.temperature_M[0] = 1e4  # its logits are small beside the others'
    policy, rows = mx.MaxProb(0.4), torch.randn(5, 3, 8, 8)
    half_blank = rows * (torch.arange(8) < 4)
    engines = [mx.Engine(model, policy), mx.Engine(mx.for_inference(model), policy)]
    for x in (rows, rows[:1], half_blank, half_blank[:1], 20 * rows, rows[:2, :, :4, :4]):
        wanted = model.predict(policy, x)
        for engine in engines:
            answer = engine.predict(x)
            assert torch.equal(answer.exit_B, wanted.exit_B)
            torch.testing.assert_close(answer.logits_BC, wanted.logits_BC, atol=1e-9, rtol=1e-3)


def test_float64_stays_as_fine():
    torch.manual_seed(0)
    model = mx.MultiExitModel(mx.cifar_resnet(20), 3).double().eval()
    x, policy = torch.randn(3, 3, 32, 32, dtype=torch.float64), mx.FixedExit(8)
    wanted = model.predict(policy, x).logits_BC
    folded = mx.Engine(mx.for_inference(model), policy).predict(x).logits_BC
    torch.testing.assert_close(folded, wanted, atol=1e-12, rtol=1e-12)


def test_what_has_no_images_is_left_alone():
    model = chain()
    assert for_inference(model) is model
    assert not model.runs_only


def test_a_copy_for_running_only_is_neither_trained_nor_saved(tmp_path):
    """Nor are its copies, and models of some of its exits; its engine runs it for a row too."""
    torch.manual_seed(0)
    model = mx.MultiExitModel(mx.cifar_resnet(20), 3).eval()
    copied = mx.for_inference(model)
    anew = mx.MultiExitModel(copied.backbone, 3)
    for only in (copied, copy.deepcopy(copied), mx.keep_exits(copied, [1, 8]), anew):
        with pytest.raises(ValueError, match=r"running only.* can't be saved: take the model"):
            only.save_pretrained(tmp_path / "saved")
        with pytest.raises(ValueError, match=r"running only.* can't be trained: take the model"):
            mx.Trainer(only, mx.recipe("joint"), mx.TrainConfig(max_steps=1))
    assert not list(tmp_path.iterdir())
    mx.Trainer(model, mx.recipe("joint"), mx.TrainConfig(max_steps=1))
    model.save_pretrained(tmp_path / "saved")
    engine, x = mx.Engine(copied, mx.MaxProb(0.4)), torch.randn(3, 3, 32, 32)
    assert engine.model is engine.model_for(1) is engine.model_for(3) is copied
    wanted = mx.Engine(model, mx.MaxProb(0.4)).predict(x)
    for answer in (engine.predict(x), pickle.loads(pickle.dumps(engine)).predict(x)):
        assert torch.equal(answer.exit_B, wanted.exit_B)
        torch.testing.assert_close(answer.logits_BC, wanted.logits_BC, atol=1e-4, rtol=1e-4)
    mx.export(copied, tmp_path / "exported", mx.MaxProb(0.4))


def test_what_is_folded_already_is_left_alone():
    folded = for_inference(mx.MultiExitModel(mx.cifar_resnet(20), 3))
    assert for_inference(folded) is folded


def test_half_precision_and_modes():
    torch.manual_seed(0)
    model = mx.MultiExitModel(mx.cifar_resnet(20), 3).to(torch.bfloat16)
    folded = for_inference(model)
    assert norms(folded) == 0
    assert all(p.dtype == torch.bfloat16 for p in folded.parameters())
    assert model.training
    assert not folded.training
    x = torch.randn(2, 3, 32, 32, dtype=torch.bfloat16)
    with torch.no_grad():
        wanted = model.eval()(x)
        near = 0.05 * float(wanted.abs().max())
        torch.testing.assert_close(folded(x), wanted, atol=near, rtol=0.1)


def change_nothing(model):
    model(torch.randn(1, 3, 32, 32))


def note(model):
    """What says nothing of answers, and settings put as they were."""
    model.policy = mx.Patience(2)
    model.latency = mx.profile(model, batch_sizes=[1], repeats=1)
    for module in model.modules():
        module._note = "seen"
        if isinstance(module, nn.BatchNorm2d):
            module.eps = float(str(module.eps))
        module.register_forward_hook(turn).remove()


def learn(model):
    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    model.eval()


def load(model):
    model.load_state_dict(model.state_dict())


def calibrate(model):
    model.temperature_M.mul_(2)


def some(model):
    """A weight and a head's bias."""
    return next(model.backbone.parameters()), list(model.heads.parameters())[-1]


def fused(model):
    loss = model(**model.backbone.example_inputs()).square().sum()
    loss.backward()
    torch.optim.AdamW(model.parameters(), 0.1, fused=True).step()


def in_place(model):
    with torch.no_grad():
        some(model)[1].add_(1)


def while_inferring(model):
    with torch.inference_mode():
        some(model)[0].mul_(2)


def through_data(model):
    some(model)[0].data.mul_(-1)


def swapped(model):
    """The same numbers in other places."""
    weight = some(model)[0].data
    weight.view(-1)[:4] = weight.view(-1)[[2, 3, 0, 1]].clone()


def flipped(model):
    head = list(model.heads.parameters())[-2].data
    head.copy_(head.flip(0).clone())


def other_data(model):
    weight = some(model)[0]
    weight.data = torch.randn_like(weight)


def through_numpy(model):
    some(model)[1].detach().numpy()[0] += 1


def turned(model):
    """The same memory, read by other strides."""
    weight = some(model)[0]
    weight.data = weight.data.transpose(-2, -1)


def other_parameter(model):
    linear = next(m for m in model.heads[0].modules() if isinstance(m, nn.Linear))
    linear.weight = nn.Parameter(torch.randn_like(linear.weight))


def other_head(model):
    model.heads[0] = copy.deepcopy(model.heads[0])
    next(model.heads[0].parameters()).data.add_(1)


def reset(model):
    state = model.state_dict()
    model.load_state_dict({k: v + v.is_floating_point() for k, v in state.items()})


def there_and_back(model):
    model.to(torch.bfloat16).to(torch.float32)


CHANGES = {
    change.__name__: change
    for change in (fused, in_place, while_inferring, through_data, swapped, flipped, other_data,
                   through_numpy,
                   other_parameter, other_head, reset, there_and_back, calibrate)
}  # fmt: skip
"""Ways in which a model changes, none of which may go unnoticed."""


def statistics(model):
    """What a pass in train mode leaves: batch norms move, versions of their statistics don't."""
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 32, 32))
    model.eval()


def other_part(model):
    name = next(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    conv = model.get_submodule(name)
    model.set_submodule(name, copy.deepcopy(conv))


def statistics_alone(model):
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    norm.running_var.data[0] += 1


def turn(module, args, output):
    """A hook that changes what comes out, or goes in."""
    return -output if isinstance(output, torch.Tensor) else output


def turn_input(module, args, kwargs=None):
    turned = tuple(-a if isinstance(a, torch.Tensor) else a for a in args)
    return turned if kwargs is None else (turned, kwargs)


def first(model, kind):
    return next(m for m in model.modules() if isinstance(m, kind))


def hooked_head(model):
    model.heads[0].register_forward_hook(turn)


def hooked_stage(model):
    model.backbone.stage_module(2).register_forward_pre_hook(turn_input)


def hooked_with_kwargs(model):
    model.heads[0].register_forward_pre_hook(turn_input, with_kwargs=True)


def other_epsilon(model):
    first(model, nn.BatchNorm2d).eps = 1.0


def other_dilation(model):
    first(model, nn.Conv2d).dilation = (2, 2)
    first(model, nn.Conv2d).padding = (2, 2)


def other_forward(model):
    model.heads[0].forward = partial(doubled, model.heads[1].linear)


def doubled(linear, feature, valid_BT=None):
    return 2 * linear(feature.mean((2, 3)).repeat(1, 4)[:, : linear.in_features])


SETTINGS = [hooked_head, hooked_stage, hooked_with_kwargs, other_epsilon, other_dilation]
SETTINGS += [other_forward]
"""Changes that no part, parameter or buffer tells of."""

SEEN = [*CHANGES.values(), turned, learn, load, statistics, statistics_alone, other_part]
SEEN += SETTINGS
SEEN += [lambda m: m.to(torch.bfloat16), lambda m: m.register_buffer("more", torch.ones(1))]


@pytest.fixture(scope="module")
def folding():
    return mx.MultiExitModel(mx.cifar_resnet(20), 3, exits=[2, 8]).eval()


@pytest.mark.parametrize("change", SEEN)
def test_an_engine_says_when_its_model_has_changed(change, folding):
    model = copy.deepcopy(folding)
    engine, x = mx.Engine(model, mx.MaxProb(0.9)), torch.randn(2, 3, 32, 32)
    change_nothing(model)
    engine.predict(x)
    note(model)
    engine.predict(x)
    change(model)
    with pytest.raises(ValueError, match="make a new Engine"):
        engine.predict(x)
    with pytest.raises(ValueError, match="make a new Engine"):
        next(engine.stream([x]))
    for other in (copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        if next(model.parameters()).dtype == torch.float32:  # made anew of what the model is now
            assert torch.equal(other.predict(x).exit_B, model.predict(mx.MaxProb(0.9), x).exit_B)
    model.train()
    with pytest.raises(ValueError, match=r"model\.eval"):
        engine.predict(x)


@pytest.mark.parametrize(
    "laid_out", [lambda w: w.mT.contiguous().mT, lambda w: w.repeat(2, 1)[::2]]
)
def test_writes_to_a_weight_that_is_not_contiguous_are_seen(laid_out, folding):
    model = copy.deepcopy(folding)
    weight = next(m for m in model.heads[0].modules() if isinstance(m, nn.Linear)).weight
    weight.data = laid_out(weight.data)
    assert not weight.is_contiguous()
    engine, x = mx.Engine(model, mx.MaxProb(0.9)), torch.randn(2, 3, 32, 32)
    engine.predict(x)
    weight.detach().numpy()[0, 0] += 1
    with pytest.raises(ValueError, match="make a new Engine"):
        engine.predict(x)


def test_hooks_of_all_modules_are_seen(folding):
    engine, x = mx.Engine(folding, mx.MaxProb(0.9)), torch.randn(2, 3, 32, 32)
    hook = nn.modules.module.register_module_forward_hook(turn)
    try:
        with pytest.raises(ValueError, match="make a new Engine"):
            engine.predict(x)
    finally:
        hook.remove()
    engine.predict(x)


@pytest.mark.parametrize("change", [statistics, through_data, other_head, hooked_stage])
def test_one_row_alone_is_answered_by_the_model_as_it_is(change, folding):
    model = copy.deepcopy(folding)
    engine, x = mx.Engine(model, mx.MaxProb(0.34)), torch.randn(8, 3, 32, 32)
    change(model)
    with pytest.raises(ValueError, match="make a new Engine"):
        engine.predict(x)
    for own in ({}, {"policy": mx.Entropy(1.0)}, {"max_exit": 0}):
        policy = own.get("policy", mx.MaxProb(0.34))
        policy = mx.FixedExit(0) if own == {"max_exit": 0} else policy
        for row in x.split(1):
            answer, wanted = engine.predict(row, **own), model.predict(policy, row)
            assert torch.equal(answer.exit_B, wanted.exit_B)
            assert torch.equal(answer.logits_BC, wanted.logits_BC)
