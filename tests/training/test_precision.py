"""Which precision trains, and accelerate's and torch's switches around a run."""

import re
import warnings
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from helpers import Table, assert_same, chain, config, convnet, fit, images, tensors
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import multiexit as mx

STATES = (PartialState, AcceleratorState, GradientState)


def made_float(dtype, settings=None, half=lambda name: True, make=chain):
    """A model whose chosen tensors came in another precision; and as it is after two steps."""
    model = make()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and half(name):
            tensor.data = tensor.data.to(dtype)
    start = tensors(model)
    fit(model, "joint", settings or config(max_steps=2, lr=1e-4), Table())
    return start, tensors(model)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("part", ["", "stages.1.", "heads."])
def test_half_precision_weights_train_in_float32_and_it_is_said(dtype, part, precision):
    settings = config(max_steps=2, lr=1e-4, mixed_precision=precision)
    said = str(dtype).removeprefix("torch.")
    with pytest.warns(UserWarning, match=rf"come in {said}.*mixed_precision='bf16'"):
        start, end = made_float(dtype, settings, lambda name: part in name)
    assert {t.dtype for t in end.values()} == {torch.float32}
    model = chain()
    model.load_state_dict({name: t.float() for name, t in start.items()})
    fit(model, "joint", settings, Table())
    assert_same(end, tensors(model))


def test_batch_statistics_are_float32_too():
    model = convnet().to(torch.bfloat16)
    with pytest.warns(UserWarning, match="bfloat16"):
        fit(model, "joint", config(max_steps=1), images())
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_and_double_precision_stay(dtype):
    class Rows(Table):
        def __init__(self):
            super().__init__()
            self.x = self.x.to(dtype)

    model = chain().to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(model, "joint", config(max_steps=2), Rows())
    assert {t.dtype for t in model.state_dict().values()} == {dtype}


# Inputs in another precision than the weights


def wide():
    """Rows as numpy's tables give them."""
    train = Table()
    train.x = train.x.double()
    return train


def test_inputs_of_another_precision_are_cast_everywhere():
    train, model, same = wide(), chain(), chain()
    x, labels = train.x, train.labels
    fit(model, "joint", config(max_steps=2), train)
    fit(same, "joint", config(max_steps=2), Table())
    assert_same(tensors(model), tensors(same))
    model.eval()
    policy = mx.MaxProb(0.4)
    wanted = model(x.float())
    engine = mx.Engine(model, policy)
    batches = list(engine.stream(DataLoader(TensorDataset(x, labels), 8)))
    assert torch.equal(model(x), wanted)
    answers = (model.predict(policy, x), engine.predict(x))
    for said in (*(a.logits_BC for a in answers), torch.cat([b.logits_BC for b in batches])):
        torch.testing.assert_close(said, model.predict(policy, x.float()).logits_BC)
    half = x[:4].bfloat16()
    torch.testing.assert_close(model(half), model(half.float()))
    torch.testing.assert_close(model.double()(x.float()), model(x.float().double()))


def test_under_autocast_precision_is_torch_s_matter():
    model, x = chain().eval(), wide().x
    seen = []
    model.backbone.stages[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(model(x.bfloat16()), model(x.bfloat16().float()))
        model(x)
    assert seen == [torch.bfloat16, torch.float32, torch.float32]


class Scaled(nn.Module):
    """A stem that takes pixels as they are."""

    def forward(self, x):
        return x.float() / 255


OTHER_KINDS = {
    "images": (lambda: convnet(), torch.zeros(4, 1, 8, 8, dtype=torch.uint8), "divide images of 0"),
    "numbers": (lambda: chain(), torch.ones(4, 6, dtype=torch.int64), "call .float()"),
    "yes and no": (lambda: chain(), torch.ones(4, 6, dtype=torch.bool), "torch.bool"),
    "complex": (lambda: chain(), torch.ones(4, 6, dtype=torch.complex64), "torch.complex64"),
    "tokens": (
        lambda: mx.MultiExitModel(mx.wrap(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))), 3),
        torch.ones(4, 5),
        "starts with tokens: whole numbers, torch.int64",
    ),
}


@pytest.mark.parametrize("case", OTHER_KINDS)
def test_inputs_of_another_kind_are_refused(case):
    make, x, words = OTHER_KINDS[case]
    model = make()
    modes = [m.training for m in model.modules()]
    before = tensors(model)
    rows = TensorDataset(x, torch.zeros(4, dtype=torch.int64))
    for ask in (
        lambda: model(x),
        lambda: fit(model, "joint", config(), rows),
        lambda: mx.Engine(model.eval(), mx.MaxProb(0.5)).predict(x),
        lambda: model.predict(mx.MaxProb(0.5), x),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            ask()
        if model.training:
            assert [m.training for m in model.modules()] == modes
    assert_same(tensors(model), before)


def test_a_network_that_takes_pixels_itself_gets_them():
    stages = [nn.Sequential(Scaled(), nn.Flatten(), nn.Linear(64, 4)), nn.Linear(4, 4)]
    model = mx.MultiExitModel(mx.wrap(nn.Sequential(*stages), input_shape=(1, 8, 8)), 3).eval()
    x = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(model(x), model(x.float()))


def test_weights_that_become_half_after_the_trainer_was_made_do_not_stay_so():
    model = chain()
    trainer = mx.Trainer(model, mx.recipe("joint"), config(max_steps=1))
    model.to(torch.bfloat16)
    with pytest.warns(UserWarning, match="bfloat16"):
        trainer.fit(Table())
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32}


# torch's switches

AROUND = {
    "no grad": torch.no_grad,
    "inference mode": torch.inference_mode,
    "nothing": nullcontext,
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("recipe", ["leebert", "romebert"])
def test_what_is_switched_around_a_run_is_not_switched_in_it(around, recipe, tmp_path):
    plain, model, dev = chain(dropout=0.1), chain(dropout=0.1), Table(8, seed=1)
    wanted = fit(plain, recipe, config(), Table(), dev)
    trainer = mx.Trainer(model, mx.recipe(recipe), config(output=tmp_path))
    with AROUND[around]():
        history = trainer.fit(Table(), dev)
    assert history.steps == wanted.steps
    assert_same(tensors(model), tensors(plain))


def test_autocast_around_a_run_is_refused():
    trainer = mx.Trainer(chain(), mx.recipe("joint"), config())
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"inside torch\.autocast"),
    ):
        trainer.fit(Table())


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        model = chain()
    with pytest.raises(ValueError, match=r"made inside torch\.inference_mode"):
        fit(model, "joint", config(), Table())


def test_another_default_precision_changes_nothing():
    plain, model = chain(), chain()
    wanted = fit(plain, "leebert", config(), Table())
    rows = Table()
    torch.set_default_dtype(torch.float64)
    try:
        history = fit(model, "leebert", config(), rows)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in tensors(model).items():
        torch.testing.assert_close(value, tensors(plain)[name], rtol=1e-5, atol=1e-7)
    assert len(history.steps) == len(wanted.steps)


# accelerate


@pytest.fixture
def fresh():
    """accelerate's state as in a new process, and as it was afterwards."""
    before = [dict(kind._shared_state) for kind in STATES]
    for kind in STATES:
        kind._shared_state.clear()
    yield
    for kind, state in zip(STATES, before, strict=True):
        kind._shared_state.clear()
        kind._shared_state.update(state)


def rounds(accelerator):
    """Whether a prepared layer's answers have been through bfloat16."""
    torch.manual_seed(0)
    prepared = accelerator.prepare(nn.Linear(8, 8))
    out = prepared(torch.randn(4, 8))
    return torch.equal(out.bfloat16().float(), out)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_the_users_own_accelerator_is_left_as_it_was(precision):
    mine = Accelerator(mixed_precision=precision, gradient_accumulation_steps=3)
    before = [dict(kind._shared_state) for kind in STATES]
    other = "no" if precision == "bf16" else "bf16"
    trainer = mx.Trainer(chain(), mx.recipe("leebert"), config(mixed_precision=other))
    assert trainer.accelerator.mixed_precision == other
    assert (mine.mixed_precision, rounds(mine)) == (precision, precision == "bf16")
    trainer.fit(Table(), Table(8, seed=1))
    assert (mine.mixed_precision, rounds(mine)) == (precision, precision == "bf16")
    assert mine.gradient_accumulation_steps == 3
    assert [dict(kind._shared_state) for kind in STATES] == before
    assert Accelerator().mixed_precision == precision


@pytest.mark.usefixtures("fresh")
def test_what_came_before_changes_no_run():
    wanted, mine = chain(), chain()
    fit(wanted, "joint", config(), Table())
    Accelerator(mixed_precision="bf16", gradient_accumulation_steps=4)
    fit(mine, "joint", config(), Table())
    assert_same(tensors(mine), tensors(wanted))


@pytest.mark.usefixtures("fresh")
def test_two_trainers_keep_their_own_precision():
    """The second is made before the first trains."""
    made = [(chain(), precision) for precision in ("bf16", "no")]
    trainers = [
        mx.Trainer(model, mx.recipe("joint"), config(mixed_precision=precision))
        for model, precision in made
    ]
    for trainer, (model, precision) in zip(trainers, made, strict=True):
        trainer.fit(Table())
        alone = chain()
        fit(alone, "joint", config(mixed_precision=precision), Table())
        assert_same(tensors(model), tensors(alone))


IGNORED = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("4", "accumulation=1"),
    "ACCELERATE_MIXED_PRECISION": ("bf16", "mixed_precision='no'"),
    "ACCELERATE_DYNAMO_BACKEND": ("inductor", "compile=False"),
}


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", IGNORED)
def test_variables_of_the_environment_have_no_effect_and_it_is_said(name, monkeypatch):
    wanted, mine = chain(), chain()
    fit(wanted, "joint", config(), Table())
    value, own = IGNORED[name]
    monkeypatch.setenv(name, value)
    with pytest.warns(UserWarning, match=f"{name}={value} .*has no effect.*{own}"):
        fit(mine, "joint", config(), Table())
    assert_same(tensors(mine), tensors(wanted))


@pytest.mark.usefixtures("fresh")
def test_what_a_launcher_sets_by_itself_is_nothing_to_speak_of(monkeypatch):
    for name, value in (
        ("ACCELERATE_MIXED_PRECISION", "no"),
        ("ACCELERATE_DYNAMO_BACKEND", "no"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1"),
        ("ACCELERATE_USE_CPU", "true"),
        ("ACCELERATE_USE_FSDP", "false"),
        ("ACCELERATE_DEBUG_MODE", "false"),
    ):
        monkeypatch.setenv(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(chain(), "joint", config(max_steps=1), Table())


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    "name",
    ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM", "ACCELERATE_USE_PARALLELISM_CONFIG"],
)
def test_ways_of_spreading_that_are_not_known_are_refused(name, monkeypatch):
    monkeypatch.setenv(name, "true")
    with pytest.raises(ValueError, match=rf"{name} is set.*DDP and FSDP2"):
        mx.Trainer(chain(), mx.recipe("joint"), config())


@pytest.mark.usefixtures("fresh")
def test_sharding_of_one_process_is_named(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.warns(UserWarning, match="nothing is sharded"):
        fit(chain(), "joint", config(max_steps=1), Table())


# Mixed precision


@pytest.mark.parametrize("precision", ["bf16", "no"])  # one after the other in one process
def test_mixed_precision_trains(precision):
    model = chain()
    settings = config(mixed_precision=precision, epochs=6, lr=0.2)
    history = fit(model, "leebert", settings, Table(80))
    first, last = (sum(history.steps[i]["own_M"]) for i in (0, -1))
    assert last < 0.85 * first
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model(Table(4).x).dtype == torch.float32
    assert "autocast" not in repr(model.forward)


def test_half_precision_of_gpus_is_refused_without_one():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match="fp16"):
        fit(chain(), "joint", config(mixed_precision="fp16"), Table())
