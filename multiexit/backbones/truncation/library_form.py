"""A network of a library's own class that has another one's first layers.

Letters: B batch rows, K classes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from multiexit.backbones.truncation.head_steps import Step
from multiexit.files.unreadable import one_line
from multiexit.runtime import evaluating


class LibraryForm(NamedTuple):
    """A network of a library with another one's first layers.

    Args:
        network: what it has and the other one hasn't is random, its head above all.
        head: the steps of its head.
        rows: random ones to compare it on, padded at their end where they are text.
        forward: from such rows to its logits [B, K].
    """

    network: Any
    head: list[Step]
    rows: dict[str, Tensor]
    forward: Callable[[dict[str, Tensor]], Tensor]

    def answers(self) -> Tensor:
        """The network's logits [B, K] for these rows."""
        with evaluating(self.network), torch.no_grad():
            return self.forward(self.rows)


def share(network: nn.Module, part: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the tensors of one of its parts.

    Args:
        network: which gets them.
        part: has some of the network's tensors, whatever names it has for them.
        state: what these tensors shall be, by the part's names.

    Raises:
        ValueError: other tensors than the part has, or of other sizes.
    """
    own = part.state_dict(keep_vars=True)
    if own.keys() != state.keys():
        raise ValueError(f"{sorted(own.keys() ^ state.keys())[:5]} is in one of them only")
    names = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
    wanted = {names[id(own[key])]: state[key] for key in own if id(own[key]) in names}
    try:
        network.load_state_dict(wanted, strict=False, assign=True)
    except RuntimeError as error:
        raise ValueError(one_line(error)) from error
