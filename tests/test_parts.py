"""A part is added in one place: a dummy of each kind works everywhere, by its one row or by none.

The rows are added where a contributor adds them. Whatever else a part would need, a branch on its
class or its name somewhere, fails here.
"""

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import CLASSES, Table, Text, assert_same, command, config, fit, tensors
from timm.models.mlp_mixer import MlpMixer
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

import multiexit as mx
from multiexit import policies, testing
from multiexit.backbones import kinds
from multiexit.backbones.transformers import families
from multiexit.backbones.transformers.transformer import TransformerBackbone
from multiexit.backbones.vision import timm_families
from multiexit.data import tasks
from multiexit.data.images import ImageDataset, Images
from multiexit.files import schema
from multiexit.losses import gradients, temperature, topology, weights
from multiexit.model import heads
from multiexit.recipes import RECIPES
from multiexit.recipes.static import keep_layers
from multiexit.training.search import crossval
from multiexit_runner import Runner

# One dummy of each kind


@dataclass(frozen=True)
class Loud(mx.ExitPolicy):
    """Stop where the largest logit is above the mean by more than the threshold."""

    threshold: float = policies.number(lambda known: (0.0, 5.0))

    def init(self, logits_BC):
        return {}

    def step(self, state, logits_BC):
        return state, logits_BC.amax(-1) - logits_BC.mean(-1) > self.threshold


class SineHead(heads.VectorHead):
    """`Linear(sin(f))`."""

    def __init__(self, shape, num_classes):
        super().__init__()
        self.linear = nn.Linear(shape[-1], num_classes)

    def vector(self, feature, valid_BT=None):
        return feature.sin()


def sines(features):
    return [SineHead(shape, features.num_classes) for shape in features.shapes]


class Summed(heads.ChainedHead):
    """A head's logits beside those of the head before."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def forward(self, feature, valid_BT, memory):
        logits_BK = self.base(feature, valid_BT)
        return logits_BK + 0.1 * memory.get("logits", 0), {**memory, "logits": logits_BK}


def summed(shape, num_classes):
    return Summed(SineHead(shape, num_classes))


class Layers(mx.Backbone):
    """Linear layers on flattened images."""

    def __init__(self, depth, inputs, spec=None):
        super().__init__([(8,)] * depth, spec=spec)
        self.inputs = inputs
        self.layers = nn.ModuleList(nn.Linear(8 if i else inputs, 8) for i in range(depth))

    def start(self, x):
        return {"x": x.flatten(1)}

    def stage(self, carry, index):
        x = torch.tanh(self.layers[index](carry["x"]))
        return {"x": x}, x

    def stage_module(self, index):
        return self.layers[index]

    def example_inputs(self, batch=1):
        return {"x": self.layers[0].weight.new_zeros(batch, self.inputs)}


class Net(nn.Module):
    """A network of the dummy's library."""

    def __init__(self, inputs):
        super().__init__()
        self.inputs = inputs


def from_spec(spec):
    return Layers(spec["depth"], spec["inputs"], spec)


def from_name(name, input_shape=(1, 8, 8)):
    inputs = int(np.prod(input_shape))
    return from_spec({"kind": "dummy", "depth": int(name), "inputs": inputs})


def from_instance(net):
    return from_name("2", (net.inputs,))


def neighbours(M):
    return topology.lle(M) & ~torch.ones(M, M, dtype=torch.bool).triu(2)


def halved(teaches_MM, progress, shares_M):
    return 0.5 * mx.coefficients.summed(teaches_MM, progress, shares_M)


@dataclass(frozen=True)
class Falling(temperature.Temperature):
    def start(self, device):
        return self.value

    def after(self, current, logits_MBC, mean=temperature.alone):
        return max(1.0, 0.9 * current)


class ExpWeights(weights.LossWeights):
    def __init__(self, teaches_MM):
        super().__init__()
        self.e_MM = nn.Parameter(torch.zeros(teaches_MM.shape))

    def forward(self):
        return self.e_MM.exp()


@dataclass(frozen=True)
class Alternate(weights.Learner):
    def plan(self, step, rho):
        return weights.Plan(second=1.0) if step % 2 else weights.Plan(stepping=rho)


@dataclass(frozen=True)
class Rows(gradients.Surgery):
    def split(self, factors_MM):
        return [F_M * torch.eye(len(factors_MM))[m][:, None] for m, F_M in enumerate(factors_MM)]

    def merge(self, parts, shared):
        return [torch.stack(each).sum(0) for each in zip(*parts, strict=True)]


def even(exit, M):
    return 0.5, 1.0


def everything(model):
    return model.parameters()


def norm(weight):
    """A loss hook that closes over a number."""
    return lambda seen: weight * seen.logits_MBC.square().mean()


def nothing(model, progress):
    pass


def dummy(weight: float = 0.01, parametrization: str = "softmax") -> mx.Recipe:
    """All dummies at once, each where a recipe names it."""
    learned = mx.Phase(
        topology=neighbours,
        coefficients=halved,
        learner=Alternate(parametrization),
        temperature=Falling(2.0),
        train=everything,
        extra=norm(weight),
        branch=even,
        before_step=nothing,
    )
    parted = mx.Phase(topology=neighbours, surgery=Rows())
    policy, cited = Loud(1.0), ("none", "none", 2026, "all dummies")
    return mx.Recipe("dummy", *cited, (learned, parted), policy)


def by_name(**options) -> mx.Recipe:
    """The same, with names in place of objects, so that it needs their rows."""
    made = dummy(**{"parametrization": "dummy", **options})
    phases = tuple(replace(phase, topology="dummy") for phase in made.phases)
    return replace(made, phases=phases, head="dummy+dummy")


def typed(weight: float = 0.01) -> mx.Recipe:
    """As the command line makes it."""
    return by_name(weight=weight)


KIND = kinds.Kind(
    schema.table(
        {"kind": schema.text, "depth": schema.whole(1, 9), "inputs": schema.whole(1, 4096)},
        {"classifier": schema.plain},
    ),
    lambda: SimpleNamespace(from_spec=from_spec, from_name=from_name, from_instance=from_instance),
    prefix="dummy:",
    library=__name__,
)
ROWS = (
    (policies.POLICIES, Loud),
    (heads.HEADS, sines),
    (heads.CHAINED, lambda made: [Summed(head) for head in made]),
    (topology.NAMES, neighbours),
    (weights.PARAMETRIZATIONS, ExpWeights),
    (RECIPES, typed),
    (kinds.KINDS, KIND),
)


@pytest.fixture(scope="module")
def rows():
    """Each dummy has its row."""
    with pytest.MonkeyPatch.context() as patch:
        for table, part in ROWS:
            patch.setitem(table, "dummy", part)
        yield


TRAIN = ("train", "--task", "digits", "--recipe", "dummy", "--backbone", "dummy:2")
STEPS = ("--max-steps", "2", "--no-progress", "--output")


@pytest.fixture(scope="module")
def run(rows, tmp_path_factory):
    """The folder of a run that was typed with the dummies' names."""
    folder = tmp_path_factory.mktemp("parts") / "run"
    ended = command(*TRAIN, "--head", "dummy+dummy", *STEPS, folder)
    assert ended.code == 0, ended.err
    return folder


def test_a_run_has_trained_the_dummies(run):
    model = mx.MultiExitModel.from_pretrained(run / "model")
    assert model.policy == Loud(1.0)
    assert isinstance(model.backbone, Layers)
    assert all(isinstance(head, Summed) for head in model.heads)
    assert all(isinstance(head.base, SineHead) for head in model.heads)
    history = json.loads((run / "history.json").read_text())
    assert [row["phase"] for row in history["steps"]] == [0, 1]
    phase = json.loads((run / "run.json").read_text())["recipe"]["phase 0"]
    assert phase["topology"] == [[False, True], [False, False]]
    assert phase["extra"] == "norm.<locals>.<lambda>(weight=0.01)"
    assert phase["learner"] == "Alternate(parametrization='dummy')"
    assert {phase["branch"], phase["before_step"], phase["train"]} == {
        "even",
        "nothing",
        "everything",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--recipe", "dummy", "--option", "weight=2.0"), "recipe phase 0 extra"),
        (("--head", "linear+dummy"), "model head"),
        (("--backbone", "dummy:3"), "backbone depth"),
    ],
)
def test_a_run_with_another_part_is_refused(run, words, said):
    known = dict(zip(TRAIN[1::2], TRAIN[2::2], strict=True)) | {"--head": "dummy+dummy"}
    known |= dict(zip(words[::2], words[1::2], strict=True))
    flat = [word for pair in known.items() for word in pair]
    ended = command("train", *flat, *STEPS, run, "--resume")
    assert ended.code == 2
    assert "another run" in ended.err
    assert said in ended.err


def test_the_dummies_can_be_typed(run, tmp_path):
    model = run / "model"
    ended = command("evaluate", model, "--policy", "dummy=0.5", "--output", tmp_path / "evaluation")
    assert ended.code == 0, ended.err
    assert "dummy=0.5" in ended.out
    ended = command("sweep", model, "--policy", "dummy", "--output", tmp_path / "sweep")
    assert ended.code == 0, ended.err
    assert ended.out.count("dummy=") >= 10
    ended = command("calibrate", model, "--policy", "dummy", "--speedup", "1.1")
    assert ended.code == 0, ended.err
    assert "with the policy dummy=" in ended.out
    assert isinstance(mx.MultiExitModel.from_pretrained(model).policy, Loud)
    assert "all dummies" in command("recipes").out
    assert command("info", "dummy:2", "--head", "dummy").code == 0


def test_the_dummies_can_be_searched(rows):
    space = {"option.weight": mx.Choices((0.1, 0.2))}
    crossval.check(space, "dummy", "digits", config())
    made, _ = crossval.apply({"option.weight": 0.2}, "dummy", "digits", {}, config())
    assert made.phases[0].extra.__closure__[0].cell_contents == 0.2


def test_the_dummies_can_be_exported(run, tmp_path):
    model = mx.MultiExitModel.from_pretrained(run / "model")
    mx.export(model, tmp_path / "exported", Loud(1.0))
    runner = Runner(tmp_path / "exported", threads=1)
    assert runner.knobs == {"threshold": 1.0}
    x = torch.randn(9, 64)
    for threshold in (0.1, 0.3, 1.0):
        runner.set(threshold=threshold)
        wanted = model.predict(Loud(threshold), x)
        assert runner.predict(x=x.numpy()).exit_B.tolist() == wanted.exit_B.tolist()


def test_the_dummies_conform(rows):
    testing.check_policy(Loud(0.5))
    testing.check_head(SineHead, (8,))
    testing.check_head(summed, (8,))
    testing.check_topology(neighbours)
    testing.check_learner(Alternate("dummy"))
    testing.check_backbone(mx.wrap("dummy:3", input_shape=(1, 2, 2)), {"x": torch.randn(4, 4)})
    assert mx.wrap(Net(5)).spec == {"kind": "dummy", "depth": 2, "inputs": 5}


def test_without_a_row_the_parts_are_passed_in(tmp_path):
    train = Table()
    models = []
    recipe = replace(dummy(), head=SineHead)
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append(mx.MultiExitModel(mx.wrap(Layers(3, 6)), CLASSES, head=recipe.head))
    model, fresh = models
    settings = config(max_steps=2, output=tmp_path)
    with pytest.warns(UserWarning, match="can't be made again"):
        fit(model, recipe, settings, train)
    parts = {"backbone": fresh.backbone, "head": SineHead, "policies": [Loud]}
    again = mx.MultiExitModel.from_pretrained(tmp_path / "model", **parts)
    assert_same(tensors(again), tensors(model))
    assert again.policy == Loud(1.0)
    outputs = mx.collect(again, train)
    assert len(policies.sweep_settings(Loud, policies.Known(3, CLASSES))) > 10
    chosen = mx.calibrate(outputs, Loud, speedup=1.2)
    assert mx.judge(outputs, chosen).speedup_layers >= 1.2
    exit_B = mx.simulate(chosen, outputs.logits_MBC)
    assert torch.equal(again.predict(chosen, train.x).exit_B, exit_B)
    assert mx.keep_exits(again, [0, 2]).policy == Loud(1.0)
    with (
        pytest.raises(ValueError, match=r"another run.*recipe phase 0 extra"),
        pytest.warns(UserWarning, match="can't be made again"),
    ):
        fit(model, dummy(weight=2.0), replace(settings, resume=True), train)


def spots() -> Images:
    """Grey 8×8 images of three classes, each with another corner bright."""
    labels = torch.arange(24) % CLASSES
    images = torch.zeros(24, 1, 8, 8, dtype=torch.uint8)
    for row, label in enumerate(labels.tolist()):
        images[row, 0, label // 2 * 4 :, label % 2 * 4 :] = 200
    rows = ImageDataset(images, labels, (0.5,), (0.3,))
    return Images(rows, rows, ("a", "b", "c"), (0.5,), (0.3,))


def test_a_data_set_is_a_row(rows, monkeypatch, tmp_path):
    monkeypatch.setitem(tasks.IMAGES, "spots", tasks.ImageSet(spots))
    words = ("train", "--task", "spots", "--recipe", "joint", "--backbone", "dummy:2")
    ended = command(*words, *STEPS, tmp_path / "run")
    assert ended.code == 0, ended.err
    assert mx.MultiExitModel.from_pretrained(tmp_path / "run" / "model").labels == ["a", "b", "c"]
    refused = command(*words, "--data-dir", "x", *STEPS, tmp_path / "other")
    assert "is for text, cifar10, cifar100, and has no effect for spots" in refused.err


def test_a_family_is_a_row(monkeypatch, tmp_path, text):
    """Data2Vec's encoder, which is laid out as RoBERTa's, and which no file of ours names."""
    named = "data2vec-text"
    sizes = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_labels": CLASSES}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 40}
    network = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(named, **sizes))
    assert not isinstance(mx.wrap(network.eval()), TransformerBackbone)
    monkeypatch.setitem(families.FAMILIES, named, families.FAMILIES["roberta"])
    model = mx.MultiExitModel(mx.wrap(network), CLASSES)
    assert isinstance(model.backbone, TransformerBackbone)
    inputs = {name: value for name, value in text(4).items() if name != "token_type_ids"}
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs)[-1], network(**inputs).logits)
    fit(model, "joint", config(max_steps=1, output=tmp_path), Text())
    again = mx.MultiExitModel.from_pretrained(tmp_path / "model")
    assert_same(tensors(again), tensors(model))
    assert keep_layers(again.backbone, [1]).num_stages == 1


def test_a_family_of_timm_is_a_row(monkeypatch):
    """Its MLP-Mixer, which no file of ours names."""
    sizes = {"img_size": 32, "embed_dim": 8, "num_blocks": 2, "num_classes": CLASSES}
    mixer = MlpMixer(patch_size=16, **sizes).eval()
    nn.init.normal_(mixer.head.weight)  # zeros when it is made
    assert mx.wrap(mixer).spec is None, "it is cut as any network is, and has no name"

    def trunk(model):
        options = {"norm": model.norm, "pool": "mean", "layout": "tokens"}
        return timm_families.Trunk(model.stem, list(model.blocks), options)

    row = timm_families.TimmFamily(trunk, {}, lambda model: "mixer_s32_224")
    monkeypatch.setitem(timm_families.FAMILIES, MlpMixer, row)
    model = mx.MultiExitModel(mx.wrap(mixer, input_shape=(3, 32, 32)), CLASSES).eval()
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x)[-1], mixer(x))
