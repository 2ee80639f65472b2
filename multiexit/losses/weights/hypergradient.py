"""The exact one-step gradient of an outer loss by the weights of the loss that Θ steps along.

Θ steps along g = ∇_Θ Σ_k F_k·L_k, the loss terms L_k with factors F_k. So with Θ' the stepped
parameters, v = ∇_Θ' outer, and P = −∂Θ'/∂g, which SGD and Adam have as one number per parameter,

    ∂outer(Θ') / ∂F_k = −⟨P∘v, ∇_Θ L_k⟩ = −(d/dε) L_k(Θ + ε·P∘v)  at ε = 0:

one forward-mode pass over the batch gives it for all terms, with no second-order graph, and
teachers that the terms hold constant stay constant. Where a network has no forward mode, it is the
derivative by u of ⟨∇_Θ ⟨u, L⟩, P∘v⟩, which is linear in u: two backward passes.

Reference: for the setting, Liu et al., "DARTS", ICLR 2019, eq. 7, which takes finite differences.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from multiexit.files.unreadable import one_line
from multiexit.randomness import layer_states, set_layer_states

TOLERANCE = 0.02
"""How far two ways to one derivative may be apart, as a share of it."""


class Moment(NamedTuple):
    """The start of a pass.

    Args:
        batch: as the pass is given it.
        tau: the temperature.
        random: the states of the generators that dropout draws from.
    """

    batch: Any
    tau: float | Tensor
    random: list[Any]


class Directional:
    """Terms that a module gives, and their derivative along a direction of its parameters.

    The forward mode differentiates what is computed forward; training goes by what goes backward,
    which hooks, `no_grad` and functions of one's own may make another thing. So when it is first
    called it looks for the way that agrees with a backward pass.

    Args:
        module: any whose answer is a tensor.
        parameters: of the module, by which is differentiated.
        compare: leave it out to learn only whether there is a way at all, for instance in
            evaluation mode, where some networks keep what they computed.

    Raises:
        ValueError: a parameter that isn't the module's.
    """

    def __init__(self, module: nn.Module, parameters: Sequence[nn.Parameter], compare: bool = True):
        self.module, self.parameters, self._compare = module, parameters, compare
        # Each place of a parameter once: functional_call's own way with tied weights leaves a
        # module that is reached by two names without its parameters.
        index_of = {p: index for index, p in enumerate(parameters)}
        self._places = {
            f"{name}.{leaf}" if name else leaf: index_of[p]
            for name, part in module.named_modules()
            for leaf, p in part._parameters.items()
            if p is not None and p in index_of
        }
        if len(set(self._places.values())) < len(parameters):
            raise ValueError("there are parameters that the module doesn't hold")
        self._way: Way | None = None

    def __call__(
        self,
        values: Sequence[Tensor],
        along: Sequence[Tensor],
        args: tuple[Any, ...],
        random: list[Any],
    ) -> tuple[Tensor, Tensor]:
        """`module(*args)` at Θ, and (d/dε) of it at Θ + ε·along, ε = 0.

        Args:
            values, along: Θ, and the direction, a tensor per parameter.
            args: what the module is called with.
            random: the generators' states that the pass begins with; they are put back after it.

        Returns:
            The terms and their derivative, in the shape of the terms, cut from their graph.

        Raises:
            ValueError: at the first call, a module that neither way differentiates as a backward
                pass does.
        """

        def terms(*stepped: Tensor) -> Tensor:
            set_layer_states(random, device)
            by_name = {name: stepped[index] for name, index in self._places.items()}
            return functional_call(self.module, by_name, args, tie_weights=False)

        device = values[0].device
        before = layer_states(device)
        try:
            with plain_attention():
                if self._way is None:
                    self._way = _agreeing(terms, values, self._compare)
                primal, tangent = self._way(terms, values, along)
        finally:
            set_layer_states(before, device)
        return primal.detach(), tangent.detach()


Terms = Callable[..., Tensor]
Way = Callable[[Terms, Sequence[Tensor], Sequence[Tensor]], tuple[Tensor, Tensor]]
"""`(terms, values, along) -> (the terms there, their derivative along it)`."""


def _agreeing(terms: Terms, values: Sequence[Tensor], compare: bool) -> Way:
    """The way whose derivative of terms with drawn factors is that of a backward pass.

    Raises:
        ValueError: none, with what torch says or what differs.
    """
    points = [value.detach().requires_grad_() for value in values]
    with torch.enable_grad():
        answer = terms(*points)
        factors = torch.randn_like(answer)
        (factors * answer).sum().backward()
    # Along each parameter's own gradient, of length 1: nothing cancels out.
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in points]
    along = [functional.normalize(g.flatten(), dim=0).view_as(g) for g in gradients]
    wanted = sum(float(g.norm()) for g in gradients)
    why = ""
    for way in (_forward_mode, _backward_twice):
        try:
            _, tangent = way(terms, values, along)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an operation without a rule for it
            why = one_line(error)
            continue
        found = float((factors * tangent).double().sum())
        agrees = abs(found - wanted) <= TOLERANCE * wanted or not math.isfinite(found)
        if agrees or not compare:
            return way
        why = f"one backward pass gives {wanted:.3g} along a direction, two give {found:.3g}"
    raise ValueError(
        "this network has operations whose derivative isn't known, or not as training goes by it "
        f"({why}), and hypergradients go by that: use a recipe such as 'leebert-clo-v1' or 'joint'"
    )


class LookBack:
    """Watches one step of Θ, and says how its outcome depended on each loss term's factor.

    Args:
        along: gives derivatives of a pass over a batch, `module(batch, tau) -> terms`, a tensor of
            any shape, by the parameters that are stepped, in the optimiser's order.
    """

    def __init__(self, along: Directional):
        self.along = along
        self.values = [p.detach().clone() for p in along.parameters]
        self.passes: list[Moment] = []
        self.slopes: list[Tensor] | None = None

    def note(self, batch: Any, tau: float | Tensor) -> None:
        """Remember a pass's batch, temperature and random state.

        Call it before each forward pass that the step's gradient is made of.
        """
        self.passes.append(Moment(batch, tau, layer_states(self.values[0].device)))

    def stepped(self, optimizer: torch.optim.Optimizer, clipped: float | Tensor) -> None:
        """Remember the derivative of the step.

        Args:
            optimizer: right after its step, before gradients are cleared.
            clipped: what the gradient was multiplied by to bound its norm.

        Raises:
            ValueError: an optimiser that `slopes` doesn't know.
        """
        self.slopes = slopes(optimizer, clipped)

    def gradient(self, outer: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The outer loss's gradient by the factors of each pass's terms.

        Not finite where the step or `outer` overflowed.

        Args:
            outer: the outer loss's gradient at the stepped parameters, a tensor per parameter.

        Returns:
            Per pass: its terms before the step, and the gradient, in the terms' shape.
        """
        assert self.slopes is not None
        direction = [slope * v for slope, v in zip(self.slopes, outer, strict=True)]
        gradients = []
        for batch, tau, random in self.passes:
            terms, derivative = self.along(self.values, direction, (batch, tau), random)
            gradients.append((terms, -derivative))
        return gradients


def plain_attention() -> AbstractContextManager[object]:
    """Attention without fused kernels: these have no forward-mode rule, and draw other dropout.

    The step that is looked back at runs under it too.
    """
    return sdpa_kernel(SDPBackend.MATH)


def slopes(optimizer: torch.optim.Optimizer, clipped: float | Tensor = 1.0) -> list[Tensor]:
    """P = −∂Θ'/∂g per parameter, right after a step and before gradients are cleared.

    SGD: lr. Adam, with m, v its moments, t its steps, m̂ = m/(1 − β1^t), v̂ = v/(1 − β2^t):

        P = lr · [(1 − β1)/(1 − β1^t) − (1 − β2)/(1 − β2^t)·m̂·g / (√v̂·(√v̂ + ε))] / (√v̂ + ε)

    Args:
        optimizer: SGD without dampening or Nesterov, or Adam(W).
        clipped: what the gradient was multiplied by to bound its norm, taken as constant.

    Returns:
        One tensor per parameter, in the optimiser's order.

    Raises:
        ValueError: another optimiser.
    """
    return [
        clipped * _slope(optimizer, group, p)
        for group in optimizer.param_groups
        for p in group["params"]
    ]


def _forward_mode(
    terms: Terms, values: Sequence[Tensor], along: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        primal, tangent, *_ = jvp(terms, tuple(values), tuple(along))
    return primal, tangent


def _backward_twice(
    terms: Terms, values: Sequence[Tensor], along: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        points = [value.detach().requires_grad_() for value in values]
        primal = terms(*points)
        u = torch.zeros_like(primal, requires_grad=True)
        gradients = torch.autograd.grad(primal, points, u, create_graph=True, allow_unused=True)
        moved = [(g, d) for g, d in zip(gradients, along, strict=True) if g is not None]
        # All is gone through, not the way to u alone, which would leave out in silence what can't
        # be differentiated twice.
        torch.stack([(g * d).sum() for g, d in moved]).sum().backward()
    assert u.grad is not None
    return primal, u.grad


def _slope(optimizer: torch.optim.Optimizer, group: dict[str, Any], p: Tensor) -> Tensor:
    if p.grad is None:
        return torch.zeros_like(p)
    if isinstance(optimizer, torch.optim.SGD):
        if group["nesterov"] or group["dampening"] or group["maximize"]:
            raise ValueError("a hypergradient needs SGD without dampening, Nesterov and maximize")
        return torch.full_like(p, float(group["lr"]))
    if not isinstance(optimizer, torch.optim.Adam):
        raise ValueError(
            f"a hypergradient needs SGD or Adam(W), not {type(optimizer).__name__}: the derivative "
            "of a step by its gradient must be known"
        )
    coupled = group["weight_decay"] and not group["decoupled_weight_decay"]
    if coupled or group["amsgrad"] or group["maximize"]:
        raise ValueError("a hypergradient needs Adam without amsgrad, maximize and coupled decay")
    state = optimizer.state[p]
    beta1, beta2 = group["betas"]
    steps = state["step"].to(p.device, torch.float64)  # 0-dimensional: makes nothing else wider
    first = (1 - beta1) / (1 - beta1**steps)
    second = (1 - beta2) / (1 - beta2**steps)
    m_hat = state["exp_avg"] / (1 - beta1**steps)
    root = (state["exp_avg_sq"] / (1 - beta2**steps)).sqrt()
    bottom = root + group["eps"]
    bend = second * m_hat * p.grad / (root.clamp(min=torch.finfo(p.dtype).tiny) * bottom)
    return group["lr"] * (first - torch.where(root > 0, bend, 0.0)) / bottom
