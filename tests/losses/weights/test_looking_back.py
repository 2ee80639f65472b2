"""What looking back leaves as it was, and what else goes on in its step."""

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
import torch
from accelerate import Accelerator
from helpers import (
    Stopped,
    Table,
    Watched,
    assert_same,
    chain,
    config,
    convnet,
    differences,
    fit,
    images,
    saved_state,
    tensors,
)
from torch import nn
from unrolled import ADAMW, SGD, albert, batch_of, bert, picture, sentence, stepper_of

import multiexit as mx
from multiexit.losses import gradients, weights
from multiexit.losses.weights import state
from multiexit.losses.weights.learners import Hyper, Learner, Plan
from multiexit.losses.weights.rows import MetaWeights
from multiexit.training import phase_checks
from multiexit.training.stepper import Stepper


@dataclass(frozen=True)
class Idle(Learner):
    """Weights that stay 1, and a plan that costs something all the same."""

    hyper: float = 0.0
    second: float = 0.0
    halves: bool = True

    @property
    def splits(self) -> bool:
        return self.halves

    @property
    def learns(self) -> bool:
        return False

    def weights(self, teaches_MM, seed):
        return weights.FixedWeights(torch.ones(teaches_MM.shape))

    def plan(self, step, rho):
        return Plan(second=self.second, hyper=self.hyper)


def trained(model: mx.MultiExitModel, learner: Learner, rows: Any, **changes: Any) -> dict:
    """What training makes of a model, by a learner that would be refused where it is `Idle`."""
    with patch.object(phase_checks, "check_learner"), patch.object(state, "check_plan"):
        fit(model, mx.recipes.leebert(2.0, learner=learner), config(**changes), rows)
    return tensors(model)


@pytest.mark.parametrize("changes", [SGD, ADAMW, {**ADAMW, "accumulation": 2, "clip": 0.1}])
def test_looking_back_leaves_the_run_as_it_is(changes):
    """Without dropout, a run that looks back in vain is the uniform one, to the last bit."""
    plain = trained(chain(), weights.Uniform(), Table(), **changes)
    assert_same(trained(chain(), Idle(hyper=1.0, halves=False), Table(), **changes), plain)


@pytest.mark.parametrize("changes", [SGD, ADAMW, {**ADAMW, "accumulation": 2}])
def test_looking_back_draws_no_random_number(changes):
    """Dropout draws for the pass on B2 as BLO's does, and for nothing else.

    Running statistics of BatchNorm are among what is compared.
    """
    first_order = trained(convnet(0.3), Idle(second=1.0), images(), **changes)
    assert_same(trained(convnet(0.3), Idle(hyper=1.0), images(), **changes), first_order)


@pytest.mark.parametrize("make", [bert, albert, convnet])
def test_the_parameters_stay_the_same_objects(make):
    model = make()
    places = [
        (part, leaf, id(p)) for part in model.modules() for leaf, p in part._parameters.items()
    ]
    keys = {part: set(vars(part)) for part in model.modules()}
    batch = picture if make is convnet else sentence
    stepper = stepper_of(model, Hyper(), **ADAMW)
    model.zero_grad()
    for t in range(2):
        stepper.step([batch(4, t)], lambda t=t: [batch(4, 10 + t)], t, 2)
    stepper.close()
    assert all(id(part._parameters[leaf]) == place for part, leaf, place in places)
    for part, before in keys.items():
        assert set(vars(part)) == before
    for p in model.parameters():
        assert isinstance(p, nn.Parameter)
        assert p.requires_grad
        assert p.is_leaf
        assert p.grad is None


def test_running_statistics_move_once_a_step():
    one, other = convnet(0.0), convnet(0.0)
    for learner, model in ((Hyper(), one), (weights.Uniform(), other)):
        stepper = stepper_of(model, learner, **SGD)
        stepper.step([picture(6, 0)], lambda: [picture(6, 1)], 0, 2)
    before = tensors(one)
    assert_same(before, tensors(other))
    assert any("running_mean" in name for name in before)
    assert all(int(v) == 1 for name, v in before.items() if "num_batches" in name)


# What else a phase may do to the gradient


@pytest.mark.parametrize(
    "changed", [{"surgery": gradients.Conflictless()}, {"branch": gradients.equilibrium}]
)
def test_what_changes_the_steps_gradient_is_refused(changed):
    """Then Θ doesn't step along Σ F∘∇L, and the formula would say something else."""
    for learner in (Hyper(), MetaWeights()):
        with pytest.raises(ValueError, match="surgery"):
            mx.Phase(topology="lae", learner=learner, **changed)


# Precision


def scaled_stepper(scale: float, **changes: Any) -> Stepper:
    """As fp16 trains: losses are scaled up before the backward pass."""
    accelerator = Accelerator()
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    accelerator.scaler = scaler
    phase = mx.recipes.leebert(learner=Hyper("raw")).phases[0]
    stepper = Stepper(chain(3), phase, config(**changes), accelerator)
    # accelerate does this before it clips, but only where fp16 itself is on
    accelerator.unscale_gradients = lambda: scaler.unscale_(stepper.optimizer.optimizer)
    return stepper


@pytest.mark.parametrize("changes", [SGD, {**SGD, "clip": 0.1}, ADAMW, {**ADAMW, "clip": 0.1}])
def test_a_loss_scale_changes_nothing(changes):
    plain = stepper_of(chain(3), Hyper("raw"), **changes)
    scaled = scaled_stepper(2.0**12, **changes)
    for t in range(3):
        for stepper in (plain, scaled):
            stepper.step([batch_of(5, t)], lambda t=t: [batch_of(5, 50 + t)], t, 3)
        mine, theirs = (s.omega.weights.W_MM.grad for s in (scaled, plain))
        largest = float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.parametrize("where", ["the step", "the pass on B2"])
@pytest.mark.parametrize("changes", [SGD, ADAMW, {**ADAMW, "clip": 0.1}])
def test_an_overflow_leaves_omega_alone(changes, where):
    stepper = scaled_stepper(2.0**12, **changes)
    passes = []

    def overflow(module, args):
        passes.append(torch.is_grad_enabled())
        if len(passes) == 1 + (where == "the pass on B2"):
            bias.register_hook(lambda g: g * torch.inf)

    bias = stepper.model.heads[0].linear.bias
    stepper._pass.register_forward_pre_hook(overflow)
    stepper.step([batch_of(5, 0)], lambda: [batch_of(5, 1)], 0, 3)
    assert passes[0]
    assert torch.equal(stepper.omega.value(), torch.ones(3, 3))
    assert all(p.isfinite().all() for p in stepper.model.parameters())


@pytest.mark.parametrize("make", [bert, albert])
def test_the_step_and_its_look_back_use_one_attention_kernel(make):
    """On a GPU a fused kernel draws its dropout otherwise than the plain one."""
    stepper, enabled = stepper_of(make(0.1), Hyper(), **ADAMW), []

    def note(module, args):
        kernels = torch.backends.cuda
        enabled.append((kernels.flash_sdp_enabled(), kernels.mem_efficient_sdp_enabled()))

    stepper._pass.register_forward_pre_hook(note)
    stepper.step([sentence(4, 0)], lambda: [sentence(4, 1)], 0, 1)
    stepping, _, *looking_back = enabled
    assert {stepping} == {*looking_back}


@pytest.mark.parametrize("make", [bert, albert])
def test_in_bfloat16(make):
    found = {}
    for precision in ("no", "bf16"):
        history = fit(
            make(),
            mx.recipes.leebert(learner=Hyper("raw")),
            config(optimizer="sgd", lr=0.05, momentum=0.0, mixed_precision=precision, max_steps=1),
            Sentences(),
        )
        assert len(history.weights) >= 1
        found[precision] = torch.tensor(history.steps[-1]["loss"])
    assert found["bf16"] == pytest.approx(float(found["no"]), rel=0.05)


class Sentences(torch.utils.data.Dataset):
    """Sixteen sentences."""

    def __init__(self):
        self.rows = sentence(16, 0)
        self.labels = self.rows["labels"]

    def __len__(self):
        return 16

    def __getitem__(self, row):
        return {name: value[row] for name, value in self.rows.items()}


# A stopped run


@pytest.mark.parametrize("recipe", ["leebert-hyper", "l2w-den"])
@pytest.mark.parametrize("changes", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_a_stopped_run_ends_as_if_it_never_was(recipe, changes, tmp_path):
    method = mx.recipe(recipe, cycle=3)
    settings = {**changes, "epochs": 3, "checkpoint_every": 2}
    model, watched = convnet(), Watched(images())
    whole = fit(model, method, config(output=tmp_path / "whole", **settings), watched)
    for stops in ((5,), (watched.reads // 2, 1), (watched.reads - 2,)):
        folder = tmp_path / str(stops)
        for stop in stops:
            mine = convnet(seed=7) if folder.exists() else convnet()
            with pytest.raises(Stopped):
                fit(
                    mine,
                    method,
                    config(output=folder, resume=True, **settings),
                    Watched(images(), stop),
                )
        torch.manual_seed(12345)
        mine = convnet(seed=7)
        again = fit(mine, method, config(output=folder, resume=True, **settings), images())
        assert_same(tensors(mine), tensors(model))
        assert again.steps == whole.steps
        assert not differences(saved_state(folder), saved_state(tmp_path / "whole"))


def test_its_weights_do_move(tmp_path):
    """The run above learns something: Ω is not what it was."""
    history = fit(chain(), "leebert-hyper", config(epochs=4), Table())
    (_, first), (_, last) = history.weights[0], history.weights[-1]
    assert first != last
