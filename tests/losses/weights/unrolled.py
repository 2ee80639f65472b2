"""A step of Θ written out, autograd twice through it, and what to try it on.

Letters: M exits, B batch rows, C classes. Θ are the network's parameters, Ω the loss weights.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from helpers import CLASSES, config
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

import multiexit as mx
from multiexit.losses.weights.learners import Learner
from multiexit.training.stepper import Stepper

SGD = {"optimizer": "sgd", "lr": 0.3, "momentum": 0.0}
MOMENTUM = {"optimizer": "sgd", "lr": 0.3, "momentum": 0.9, "weight_decay": 0.1}
ADAMW = {"optimizer": "adamw", "lr": 0.02, "weight_decay": 0.1}


# The oracle


@contextmanager
def swapped(model: nn.Module, values: dict[nn.Parameter, Tensor]) -> Iterator[None]:
    """Inside, other tensors stand wherever these parameters stood."""
    taken = [
        (part, leaf, p)
        for part in model.modules()
        for leaf, p in list(part._parameters.items())
        if p in values
    ]
    for part, leaf, p in taken:
        del part._parameters[leaf]
        setattr(part, leaf, values[p])
    yield
    for part, leaf, p in taken:
        delattr(part, leaf)
        part._parameters[leaf] = p


def naive_losses(logits_MBC: Tensor, labels_B: Tensor, tau: float) -> Tensor:
    """Eqs. 1 and 2, a pair of exits at a time."""
    M, _, C = logits_MBC.shape
    rows = []
    for i in range(M):
        row = []
        for j in range(M):
            if C == 1:
                wanted_B = labels_B if i == j else logits_MBC[j, :, 0].detach()
                row.append(((logits_MBC[i, :, 0] - wanted_B) ** 2).mean())
            elif i == j:
                row.append(F.cross_entropy(logits_MBC[i], labels_B))
            else:
                teacher_BC = (logits_MBC[j].detach() / tau).softmax(-1)
                student_BC = (logits_MBC[i] / tau).softmax(-1).log()
                row.append(-(tau**2) * (teacher_BC * student_BC).sum(-1).mean())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def naive_weights(name: str, omega: list[Tensor], teaches_MM: Tensor) -> Tensor:
    """W of a parametrisation, from its parameters."""
    if name != "softmax":
        return omega[0] if name == "raw" else (-omega[0]).exp()
    own_M, pairs_MM = omega
    M, f = len(own_M), 0.1
    W = torch.ones(M, M).tolist()
    for i in range(M):
        W[i][i] = f + (1 - f) * M * own_M[i].exp() / own_M.exp().sum()
        teachers = [j for j in range(M) if teaches_MM[i, j]]
        for j in teachers:
            total = sum(pairs_MM[i, k].exp() for k in teachers)
            W[i][j] = f + (1 - f) * len(teachers) * pairs_MM[i, j].exp() / total
    return torch.stack([torch.stack([torch.as_tensor(w) for w in row]) for row in W])


def naive_step(
    settings: mx.TrainConfig, theta: dict, gradient: dict, state: dict, t: int
) -> dict[nn.Parameter, Tensor]:
    """Θ_t+1 of SGD or AdamW; `state` has the moments before the step."""
    lr, made = settings.lr, {}
    for p, value in theta.items():
        g, old = gradient[p], state.get(p, {})
        if settings.optimizer == "sgd":
            g = g + settings.weight_decay * value
            if old.get("momentum_buffer") is not None:
                g = settings.momentum * old["momentum_buffer"] + g
            made[p] = value - lr * g
            continue
        decay = settings.weight_decay if p.ndim > 1 else 0.0  # biases and norms are spared
        m = 0.9 * old.get("exp_avg", torch.zeros_like(value)) + 0.1 * g
        v = 0.999 * old.get("exp_avg_sq", torch.zeros_like(value)) + 0.001 * g**2
        m, v = m / (1 - 0.9**t), v / (1 - 0.999**t)
        root = torch.where(v > 0, torch.where(v > 0, v, 1.0).sqrt(), 0.0)
        made[p] = value - lr * decay * value - lr * m / (root + 1e-8)
    return made


def logits_of(model: mx.MultiExitModel, batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, dict):
        return model(**{k: v for k, v in batch.items() if k != "labels"}), batch["labels"]
    return model(batch[0]), batch[1]


def unrolled(
    stepper: Stepper,
    before: SimpleNamespace,
    micro: list,
    second: list,
    factors: Callable[[list[Tensor]], Tensor],
    outer: Callable[[Tensor, Tensor], Tensor],
    scale: float = 1.0,
    branch: Any = None,
) -> list[Tensor]:
    """The outer loss's gradient by Ω's parameters, by autograd through Θ's step.

    Args:
        before: the model, the optimiser's state, Ω and the random state before the step.
        micro, second: B1 and B2.
        factors: from Ω's parameters the W ∘ A of the loss terms.
        outer: the outer loss of logits and labels.
        scale: what Θ's gradient is multiplied by.
    """
    torch.set_rng_state(before.random)
    model = before.model
    theta = {p: p.detach().clone().requires_grad_() for p in before.parameters}
    omega = [w.detach().clone().requires_grad_() for w in before.omega]
    tau = stepper.tau
    with sdpa_kernel(SDPBackend.MATH):
        total = torch.zeros(())
        with swapped(model, theta):
            for batch in micro:
                total = total + factors(omega, *logits_of(model, batch), tau) / len(micro)
        found = torch.autograd.grad(
            total, list(theta.values()), create_graph=True, allow_unused=True
        )
        gradient = {
            p: torch.zeros_like(p) if g is None else scale * g
            for p, g in zip(theta, found, strict=True)
        }
        after = naive_step(stepper.config, theta, gradient, before.state, before.t)
        with swapped(model, after):
            paid = sum(outer(*logits_of(model, batch)) for batch in second) / len(second)
    made = torch.autograd.grad(paid, omega, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(omega, made, strict=True)]


def snapshot(stepper: Stepper, t: int) -> SimpleNamespace:
    """All that a step begins with, as copies; the state by the copied parameters."""
    model = copy.deepcopy(stepper.model)
    twin = dict(zip(stepper.model.parameters(), model.parameters(), strict=True))
    state = {twin[p]: copy.deepcopy(s) for p, s in stepper.optimizer.optimizer.state.items()}
    return SimpleNamespace(
        model=model,
        parameters=[twin[p] for p in stepper._parameters],
        state=state,
        omega=[w.detach().clone() for w in stepper.omega.weights.parameters()],
        random=torch.get_rng_state(),
        t=t,
    )


# Steps, batches and networks


def stepper_of(
    model: mx.MultiExitModel, learner: Learner, tau: float = 1.0, phase: Any = None, **changes
) -> Stepper:
    phase = phase or mx.recipes.leebert(tau, learner=learner).phases[0]
    return Stepper(model, phase, config(**changes), Accelerator())


def batch_of(rows: int, seed: int, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=generator)
    if classes == 1:
        return x, torch.randn(rows, generator=generator)
    return x, torch.randint(classes, (rows,), generator=generator)


def picture(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 1, 8, 8, generator=generator)
    return x, torch.randint(CLASSES, (rows,), generator=generator)


def sentence(rows: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 30, (rows, 7), generator=generator)
    mask = (torch.arange(7) < torch.arange(rows)[:, None] % 4 + 4).long()
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


TEXT = {
    "vocab_size": 30,
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 10,
    "initializer_range": 0.5,
}


def bert(dropout: float = 0.0, head: str | None = None) -> mx.MultiExitModel:
    """Three layers; the heads share the pooler."""
    torch.manual_seed(3)
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    shape = BertConfig(**TEXT, **drops)
    return mx.MultiExitModel(mx.wrap(BertModel(shape)), CLASSES, head=head)


def albert(dropout: float = 0.0) -> mx.MultiExitModel:
    """Three layers that are one."""
    torch.manual_seed(3)
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    shape = AlbertConfig(**TEXT, **drops, embedding_size=6)
    return mx.MultiExitModel(mx.wrap(AlbertModel(shape)), CLASSES)
