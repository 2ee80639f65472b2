"""Learning rates that fall from the last stage to the first."""

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from multiexit.model.model import MultiExitModel
from multiexit.runtime import evaluating


def factors(model: MultiExitModel, decay: float) -> dict[str, float]:
    """The factor of λ1 for each parameter, by its name.

        stage i of S:  decay^(S − 1 − i);    before stage 0:  decay^S;    heads and others:  1

    S counts the stages up to the last exit, i from 0. Before stage 0 are the parameters that
    `Backbone.start` uses: embeddings, or a convolutional stem.

    Args:
        model: with its backbone.
        decay: in (0, 1).

    Raises:
        ValueError: stages share parameters, so there is no first and last.

    Reference: Clark et al., "ELECTRA", ICLR 2020, appendix A; Sun et al., "How to Fine-Tune BERT
    for Text Classification?", 2019, section 5.3.3.
    """
    S = model.exits[-1] + 1
    stages = [set(model.backbone.stage_module(i).parameters()) for i in range(S)]
    if len(set().union(*stages)) < sum(map(len, stages)):
        raise ValueError(
            f"layer_decay={decay} gives each stage a rate of its own, and stages of this "
            f"{type(model.backbone).__name__} share their parameters, as ALBERT's do: leave it out"
        )
    found = dict.fromkeys(_before(model), decay**S)
    for i, stage in enumerate(stages):
        found.update(dict.fromkeys(stage, decay ** (S - 1 - i)))
    return {name: found.get(p, 1.0) for name, p in model.named_parameters()}


def by_parameter(
    model: MultiExitModel, decay: float | None, copy: MultiExitModel
) -> dict[nn.Parameter, float] | None:
    """The factors by the parameters of a copy of the model, or of itself; None without decay."""
    if decay is None:
        return None
    by_name = factors(model, decay)
    return {p: by_name[name] for name, p in copy.named_parameters()}


def _before(model: MultiExitModel) -> list[nn.Parameter]:
    """The trained parameters of the backbone that its start depends on."""
    parameters = [p for p in model.backbone.parameters() if p.requires_grad]
    with evaluating(model), torch.enable_grad():
        carry = model.backbone.start(**model.backbone.example_inputs())
    leaves = [t for t in tree_leaves(carry) if isinstance(t, torch.Tensor) and t.requires_grad]
    if not leaves:
        return []
    total = torch.stack([t.float().sum() for t in leaves]).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [p for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
