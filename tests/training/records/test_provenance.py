"""run.json: what a run was made from, and the run repeated from it; hashes of data sets."""

import json
import shlex
import subprocess
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import (
    CLASSES,
    Stopped,
    Table,
    Text,
    Watched,
    assert_same,
    chain,
    command,
    config,
    fit,
    images,
)
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset
from transformers import BertConfig, BertModel

import multiexit as mx
from multiexit import _version
from multiexit.data.fingerprint import fingerprint
from multiexit.losses import coefficients
from multiexit.losses.gradients import Conflictless
from multiexit.losses.temperature import Constant
from multiexit.losses.weights.learners import CLO2, SLO
from multiexit.training.records import identity, provenance


def facts(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_run_can_be_repeated_from_its_command(tmp_path, monkeypatch):
    """Typed, and typed again as run.json has it, but into another folder."""
    monkeypatch.chdir(tmp_path)
    typed = [
        "train",
        "--task",
        "digits",
        "--exits",
        "3",
        "--max-steps",
        "2",
        "--no-progress",
        "--output",
    ]
    ended = command(*typed, "one run")
    assert ended.code == 0, ended.err
    program, *again = shlex.split(facts(tmp_path / "one run")["command"])
    assert program == "multiexit"
    ended = command(*again[:-1], "two")
    assert ended.code == 0, ended.err
    one, two = (load_file(tmp_path / f / "model" / "model.safetensors") for f in ("one run", "two"))
    assert_same(one, two)
    assert facts(tmp_path / "one run")["data"] == facts(tmp_path / "two")["data"]


def test_it_says_what_the_run_was_made_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (["init"], ["add", "file"], ["commit", "-m", "one"]):
        (tmp_path / "file").write_text("1")
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", *who, *words], check=True, capture_output=True)
    model, train, dev = chain(), Table(), Table(8, seed=1)
    with pytest.raises(Stopped):  # it is there before the first batch
        fit(model, "leebert", config(output="run"), Watched(train, 0), dev)
    found = facts(tmp_path / "run")
    assert found["data"] == {
        "train": {"rows": 40, "hash": fingerprint(train)},
        "dev": {"rows": 8, "hash": fingerprint(dev)},
    }
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    assert found["git"] == {"commit": head.stdout.strip(), "dirty": False}
    assert found["config"]["seed"] == 0
    assert found["recipe"]["name"] == "leebert"
    assert found["versions"]["torch"] == torch.__version__
    assert found["folder"] == str(tmp_path)
    (tmp_path / "file").write_text("2")
    fit(chain(), "leebert", config(output="run", resume=True), train, dev)
    assert facts(tmp_path / "run")["git"]["dirty"], "nothing was saved, so it began anew"
    fit(chain(), "leebert", config(output="run", resume=True), train, dev)
    again = facts(tmp_path / "run")
    assert [how["from"] for how in again["resumed"]] == ["phase-00-step-0000006"]
    assert again["resumed"][0]["config"]["resume"]


def test_its_settings_are_those_that_are_no_defaults(tmp_path):
    settings = mx.TrainConfig(
        max_steps=1, sampling="balanced", ema=0.9, output=tmp_path / "run", progress=False
    )
    fit(chain(2), "joint", settings, Table())
    assert provenance.settings(tmp_path / "run") == {
        "recipe": "joint", "max_steps": 1, "sampling": "balanced", "ema": 0.9
    }  # fmt: skip
    assert provenance.settings(tmp_path) == {}
    for epochs in (1, mx.TrainConfig().epochs):  # the default is told too
        settings = mx.TrainConfig(epochs=epochs, output=tmp_path / str(epochs), progress=False)
        fit(chain(2), "joint", settings, Table())
        assert provenance.settings(tmp_path / str(epochs)) == {"recipe": "joint", "epochs": epochs}


def test_outside_of_a_repository_git_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    fit(chain(), "joint", config(output="run", epochs=1), Table())
    assert facts(tmp_path / "run")["git"] is None


# Hashes


def changed(data, name, change):
    setattr(data, name, change(getattr(data, name)))
    return data


def flip(tensor):
    tensor = tensor.clone()
    tensor.view(-1)[-1] += 1
    return tensor


def compressed(matrix):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls the layout a beta
        return matrix.to_sparse_csr()


SAME = {
    "table": Table,
    "images": images,
    "text": Text,
    "tensors": lambda: TensorDataset(torch.arange(6.0), torch.arange(6)),
    "subset": lambda: Subset(Table(), [3, 1]),
    "loader": lambda: DataLoader(Table(), 3),
    "list of batches": lambda: [(torch.ones(2, 3), torch.tensor([0, 1]))],
    "half precision": lambda: TensorDataset(torch.ones(3, dtype=torch.bfloat16)),
    "numbers": lambda: changed(Table(), "x", lambda x: x.numpy()),
    "objects": lambda: changed(Table(), "x", lambda x: np.array(["a", None], dtype=object)),
    "files": lambda: changed(Table(), "x", lambda x: [("a.png", 0), ("b.png", 1)]),
    "a sparse matrix": lambda: changed(Table(), "x", lambda x: compressed(torch.eye(3))),
    "a circle": lambda: changed(Table(), "x", lambda x: [torch.ones(1)] * 2),
}
OTHER = {
    "a number": lambda: changed(Table(), "x", flip),
    "a label": lambda: changed(Table(), "labels", flip),
    "a row less": lambda: Table(39),
    "order": lambda: Subset(Table(), [1, 3]),
    "a setting": lambda: images(augment=False),
    "pixels": lambda: changed(images(), "images", flip),
    "a token": lambda: changed(Text(), "ids", lambda ids: [*ids[:-1], flip(ids[-1])]),
    "a type": lambda: changed(Table(), "x", lambda x: x.double()),
    "a shape": lambda: changed(Table(), "x", lambda x: x.reshape(2 * len(x), -1)),
    "a sparse entry": lambda: changed(Table(), "x", lambda x: compressed(2 * torch.eye(3))),
    "a file": lambda: changed(Table(), "x", lambda x: [("a.png", 0), ("c.png", 1)]),
}


def test_equal_data_has_equal_hashes_and_other_data_others():
    hashes = {name: fingerprint(make()) for name, make in {**SAME, **OTHER}.items()}
    assert hashes == {name: fingerprint(make()) for name, make in {**SAME, **OTHER}.items()}
    assert hashes.pop("loader") == hashes["table"]
    assert len(set(hashes.values())) == len(hashes)


VALUES = {
    "numpy's numbers": (np.float32(1), np.float32(2)),
    "numpy's types": (np.int64(1), np.int32(1)),
    "numpy's dates": (np.datetime64("2024-01-01"), np.datetime64("2024-01-02")),
    "bytes": (b"one", b"two"),
    "byte arrays": (bytearray(b"one"), bytearray(b"two")),
    "paths": (Path("a/b"), Path("a/c")),
    "sets": ({"a", "b", "c"}, {"a", "b", "d"}),
    "frozen sets": (frozenset({1, (2, b"c")}), frozenset({1, (2, b"d")})),
    "times": (datetime(2024, 1, 1, 12), datetime(2024, 1, 1, 13)),
    "days": (date(2024, 1, 1), date(2024, 1, 2)),
    "spans": (timedelta(1), timedelta(2)),
    "decimals": (Decimal("0.1"), Decimal("0.2")),
    "complex numbers": (1j, 2j),
    "choices": (Enum("E", "A B").A, Enum("E", "A B").B),
    "slices": (slice(1), slice(2)),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_values_of_any_kind_count(values):
    """As a setting, inside lists, and as rows."""
    one, other = values
    hashes = [
        (fingerprint(changed(Table(), "x", lambda _, v=v: v)), fingerprint([1, {"rows": (v, 0)}]))
        for v in (one, deepcopy(one), other)
    ]
    assert hashes[0] == hashes[1]
    assert not {*hashes[0]} & {*hashes[2]}


def test_the_order_of_a_set_does_not_count():
    one, other = {0, 8}, {8, 0}
    assert list(one) != list(other)
    assert fingerprint(one) == fingerprint(other)


def test_a_set_that_holds_itself():
    data = Table()
    data.splits = {"train": data}
    assert fingerprint(data) == fingerprint(data)


def test_what_pickling_would_leave_out_does_not_count():
    watched = Watched(Table())
    before = fingerprint(watched)
    watched.__getitems__([0])
    assert fingerprint(watched) == before == fingerprint(Table())


def test_rows_of_another_library_have_their_own():
    datasets = pytest.importorskip("datasets")
    one, two = (datasets.Dataset.from_dict({"x": [1, value]}) for value in (2, 3))
    assert fingerprint(one) == fingerprint(datasets.Dataset.from_dict({"x": [1, 2]}))
    assert fingerprint(one) != fingerprint(two)


def test_data_that_changed_is_not_gone_on_with(tmp_path):
    fit(chain(), "joint", config(output=tmp_path, epochs=1), Table(), Table(8))
    settings = config(output=tmp_path, epochs=1, resume=True)
    with pytest.raises(ValueError, match=r"data train hash .* there, .* here"):
        fit(chain(), "joint", settings, changed(Table(), "x", flip), Table(8))
    with pytest.raises(ValueError, match=r"data dev rows \(8 there, 9 here\)"):
        fit(chain(), "joint", settings, Table(), Table(9))
    with pytest.raises(ValueError, match="data dev"):
        fit(chain(), "joint", settings, Table())


def test_another_version_is_not_gone_on_with(tmp_path, monkeypatch):
    fit(chain(), "joint", config(output=tmp_path, epochs=1), Table())
    monkeypatch.setattr(_version, "__version__", "9.9")
    settings = config(output=tmp_path, epochs=1, resume=True)
    with pytest.raises(
        ValueError, match=r"versions multiexit \('.*' there, '9.9' here\).*force=True"
    ):
        fit(chain(), "joint", settings, Table())
    with pytest.warns(UserWarning, match=r"versions multiexit.*by force"):
        fit(chain(), "joint", replace(settings, force=True), Table())


def test_the_code_is_hashed_of_all_rooms(monkeypatch):
    before, read = provenance._code_hash.__wrapped__(), set()
    whole = Path.read_bytes

    def watched(path):
        read.add(path)
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", watched)
    assert provenance._code_hash.__wrapped__() == before
    assert read == set(Path(mx.__file__).parent.rglob("*.py"))


def test_changed_code_is_not_gone_on_with(tmp_path, monkeypatch):
    fit(chain(), "joint", config(output=tmp_path, epochs=1), Table())
    monkeypatch.setattr(provenance, "_code_hash", lambda: "other")
    settings = config(output=tmp_path, epochs=1, resume=True)
    with pytest.raises(ValueError, match=r"code of multiexit \('\w{12}' there, 'other' here\)"):
        fit(chain(), "joint", settings, Table())


def transformer(pool=None, **changes):
    sizes = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    made = BertModel(BertConfig(**{**sizes, "num_attention_heads": 2, **changes}))
    return mx.MultiExitModel(mx.wrap(made), CLASSES, head="linear", pool=pool)


def different(one, other):
    """In what two models' runs differ."""
    of = [
        identity.identity(provenance.describe(model, mx.recipe("joint"), config(), {}, 1))
        for model in (one, other)
    ]
    return [key for key in of[0] if of[0][key] != of[1][key]]


def test_settings_of_the_backbone_are_compared_and_where_they_came_from_is_not():
    one = transformer()
    assert different(one, transformer(name_or_path="elsewhere", transformers_version="5.0")) == []
    other = transformer(num_attention_heads=4, hidden_act="relu")
    assert {*different(one, other)} == {
        f"backbone config {key}" for key in ("hidden_act", "num_attention_heads")
    }


def test_another_head_of_the_same_shape_is_gone_on_with_by_force_alone(tmp_path):
    fit(transformer("mean"), "joint", config(output=tmp_path, epochs=1), Text())
    settings = config(output=tmp_path, epochs=1, resume=True)
    with pytest.raises(ValueError, match=r"model pool \('mean' there, 'first' here\).*force=True"):
        fit(transformer("first"), "joint", settings, Text())
    with pytest.warns(UserWarning, match=r"model pool.*by force"):
        fit(transformer("first"), "joint", replace(settings, force=True), Text())


def phase_with(kind=mx.Phase, **fields):
    """The facts of a run by one phase."""
    recipe = replace(mx.recipes.joint(), phases=(kind(**fields),))
    return identity.identity(provenance.describe(chain(), recipe, config(), {}, 1))


def a_hook(model):
    """A hook."""


def another(model):
    """Another one."""


def test_a_new_field_of_a_phase_tells_runs_apart_by_itself():
    @dataclass(frozen=True)
    class Later(mx.Phase):
        after_step: Callable[[mx.MultiExitModel], None] | None = None

    plain, one, other = (phase_with(Later, after_step=hook) for hook in (None, a_hook, another))
    differing = {key for key in one if one[key] != other[key]}
    assert differing == {"recipe phase 0 after_step"}
    assert plain != one
    known = {key: value for key, value in plain.items() if value is not None}
    assert known == {key: value for key, value in phase_with().items() if value is not None}


def test_every_field_of_a_phase_tells_runs_apart():
    plain = phase_with(topology="last")
    changed = {
        "topology": "lle",
        "coefficients": coefficients.last_only,
        "learner": CLO2(),
        "temperature": Constant(2.0),
        "divergence": "kl",
        "train": "last",
        "epochs": 7,
        "lr": 0.5,
        "extra": a_hook,
        "branch": a_hook,
        "surgery": Conflictless("early"),
        "before_step": a_hook,
        "keep": "last",
    }
    assert {*changed} == {field.name for field in fields(mx.Phase)}
    for name, value in changed.items():
        other = phase_with(**{"topology": "last", name: value})
        assert {k for k in plain if plain[k] != other[k]} >= {f"recipe phase 0 {name}"}, name


def scaled(factor):
    """A hook that closes over a number."""
    return lambda seen: factor * seen.logits_MBC.mean()


def scaled_by_default(factor):
    """The same, by a default."""
    return lambda seen, factor=factor: factor * seen.logits_MBC.mean()


@pytest.mark.parametrize("hook", [scaled, scaled_by_default])
@pytest.mark.parametrize("values", [(0.5, 0.25), ((1.0, 0.5), (1.0, 0.25))])
def test_what_a_hook_closes_over_tells_runs_apart(hook, values):
    one, other = values
    assert phase_with(extra=hook(one)) == phase_with(extra=hook(one))
    assert phase_with(extra=hook(one)) != phase_with(extra=hook(other))


class Hook:
    """An object that is called, with a counter that isn't the run's affair."""

    def __init__(self, factor):
        self.factor, self._calls = factor, 0

    def __call__(self, seen):
        self._calls += 1
        return self.factor * seen.logits_MBC.mean()

    def called(self, seen):
        return self(seen)


@dataclass(frozen=True)
class Parted(SLO):
    """A learner with a field that isn't plain."""

    shares: list[float] = field(default_factory=list)


def network(seed):
    torch.manual_seed(seed)
    return nn.Linear(2, 2)


def nested(value):
    rows = [torch.zeros(2), torch.full((3,), value)]
    return torch.nested.nested_tensor(rows, layout=torch.jagged)


KEPT = {
    "a list": (scaled, ["heads.0"], ["heads.1"]),
    "a long list": (scaled, [0.5] * 200, [0.5] * 199 + [0.4]),
    "a very long list": (scaled, [[0.5]] * 20_000, [[0.5]] * 19_999 + [[0.4]]),
    "a mapping": (scaled, {"a": 1}, {"a": 2}),
    "a set": (scaled, {1, 2}, {1, 3}),
    "a tensor": (scaled, torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
    "an array": (scaled, np.arange(3), np.arange(3) + 1),
    "tensors in a list": (scaled, [torch.zeros(2)], [torch.ones(2)]),
    "a sparse tensor": (scaled, torch.eye(3).to_sparse(), 2 * torch.eye(3).to_sparse()),
    "a nested tensor": (scaled, nested(0.5), nested(0.4)),
    "a tensor without content": (scaled, *(torch.empty(n, device="meta") for n in (2, 3))),
    "a network without content": (scaled, *(nn.Linear(2, n, device="meta") for n in (2, 3))),
    "a network without shapes": (scaled, nn.LazyLinear(2), nn.LazyLinear(2).double()),
    "a function": (scaled, scaled(1.0), scaled(2.0)),
    "a network": (scaled, network(0), network(1)),
    "an object": (scaled, Hook(1.0), Hook(2.0)),
    "an object itself": (Hook, 1.0, 2.0),
    "an object's list": (Hook, [1.0], [2.0]),
    "an object's method": (lambda factor: Hook(factor).called, 1.0, 2.0),
    "a partial": (lambda factor: partial(share, by=factor), [1.0], [2.0]),
}


@pytest.mark.parametrize("kind", KEPT)
def test_whatever_a_hook_keeps_tells_runs_apart(kind):
    make, one, other = KEPT[kind]
    assert phase_with(extra=make(one)) == phase_with(extra=make(deepcopy(one)))
    differing = phase_with(extra=make(one)), phase_with(extra=make(other))
    assert {k for k in differing[0] if differing[0][k] != differing[1][k]} == {
        "recipe phase 0 extra"
    }


def test_fields_that_are_not_plain_and_private_counters_are_told_likewise():
    one, other = (phase_with(learner=Parted(shares=[share])) for share in (0.5, 0.25))
    assert {k for k in one if one[k] != other[k]} == {"recipe phase 0 learner"}
    hook = Hook(1.0)
    before = phase_with(extra=hook)
    hook._calls = 7
    assert phase_with(extra=hook) == before


def logging(factor):
    """A hook within another, which keep a log, a count and a mean."""
    log, count, mean = [], 0, torch.zeros(())

    def inner(seen):
        nonlocal count
        count += 1
        mean.add_(1.0)
        return factor * seen.logits_MBC.var()

    def extra(seen):
        log.append(float(inner(seen)))
        return inner(seen)

    return extra


@pytest.mark.parametrize("same_process", [False, True])
def test_what_a_hook_fills_is_no_other_run(tmp_path, same_process):
    first = logging(0.1)
    settings = config(output=tmp_path, epochs=1, checkpoint_every=1)
    again = replace(settings, resume=True)

    def run(extra, settings, callbacks=()):
        model = chain(seed=2 if settings.resume else 1)  # other first weights log other numbers
        recipe = replace(mx.recipes.joint(), phases=(mx.Phase(extra=extra),))
        mx.Trainer(model, recipe, settings, callbacks=callbacks).fit(Table())

    with pytest.raises(Stopped):
        run(first, settings, [StopsAfterTwo()])
    with pytest.raises(ValueError, match="it differs in recipe phase 0 extra"):
        run(logging(0.2), again)
    run(first if same_process else logging(0.1), again)


class StopsAfterTwo(mx.Callback):
    def on_step(self, run, row):
        if run.position.step == 2:
            raise Stopped


def test_a_hook_that_keeps_the_trained_model_goes_on_with_other_first_weights():
    said = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = chain()
        recipe = replace(mx.recipes.joint(), phases=(mx.Phase(extra=scaled(model.backbone)),))
        said.append(identity.identity(provenance.describe(model, recipe, config(), {}, 1)))
    assert said[0] == said[1]


def rising_until(share):
    """Coefficients that are alike in the middle of a phase."""

    def coefficients_of(teaches_MM, progress, shares_M):
        return min(1.0, progress / share) * torch.eye(len(teaches_MM))

    return coefficients_of


def test_coefficients_that_differ_early_alone_tell_runs_apart():
    one, other = (phase_with(coefficients=rising_until(share)) for share in (0.25, 0.5))
    assert {key for key in one if one[key] != other[key]} == {"recipe phase 0 rules"}


def run_of(recipe):
    return identity.identity(provenance.describe(chain(), recipe, config(), {}, 1))


def test_what_a_recipe_ends_with_tells_runs_apart():
    plain = mx.recipe("msdnet")
    for changed, name in (
        (mx.recipe("msdnet", speedup=3.0), "finish"),
        (replace(plain, policy=mx.MaxProb(0.5)), "policy"),
    ):
        one, other = run_of(plain), run_of(changed)
        assert {key for key in one if one[key] != other[key]} == {f"recipe {name}"}


class Nameless:
    """Is written with its address in memory."""

    def __call__(self, seen):
        return seen.logits_MBC.mean()


def share(seen, by, other):
    return by * seen.logits_MBC.mean()


def test_what_is_written_with_its_address_is_the_same_in_each_process():
    """Objects are kept, so that addresses differ."""
    kept = [(Nameless(), partial(share, by=2.0, other=Nameless())) for _ in range(2)]
    for one, other in zip(*kept, strict=True):
        said = []
        for extra in (one, other):
            recipe = replace(mx.recipes.joint(), phases=(mx.Phase(extra=extra),))
            said.append(provenance.describe(chain(), recipe, config(), {"train": Table()}, 1))
        assert said[0] == said[1]
    changed = mx.Phase(extra=partial(share, by=3.0, other=Nameless()))
    recipe = replace(mx.recipes.joint(), phases=(changed,))
    assert provenance.describe(chain(), recipe, config(), {"train": Table()}, 1) != said[0]


def test_the_order_of_a_set_in_a_hook_does_not_count():
    one, other = (partial(share, by=2.0, other=kept) for kept in ({0, 8}, {8, 0}))
    assert repr(one) != repr(other)
    recipes = [replace(mx.recipes.joint(), phases=(mx.Phase(extra=e),)) for e in (one, other)]
    said = [provenance.describe(chain(), r, config(), {"train": Table()}, 1) for r in recipes]
    assert said[0] == said[1]


@pytest.mark.parametrize("text", ["", '{"command": "mul', "[]", '{"resumed": 1}'])
def test_a_damaged_file_is_named_when_a_run_goes_on(tmp_path, text):
    fit(chain(), "joint", config(output=tmp_path, epochs=1), Table())
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json.*move run\.json away to go on"):
        fit(chain(), "joint", config(output=tmp_path, epochs=1, resume=True), Table())
