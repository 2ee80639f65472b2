"""Rows that have a policy, or a last exit, of their own.

Letters: B batch rows.
"""

from collections.abc import Sequence
from typing import Any

import torch

from multiexit import policies
from multiexit.model import exit_loop
from multiexit.model.model import MultiExitModel
from multiexit.policies import ExitPolicy
from multiexit.policies.base import ROW
from multiexit_runner.knobs import last_exits

LAST = f"{ROW}last"  # the entry of a state that says where a row leaves at the latest


def of_rows(
    model: MultiExitModel, rows: int, policy: ExitPolicy | Sequence[ExitPolicy]
) -> list[ExitPolicy]:
    """Each row's policy.

    Args:
        model: that runs them.
        rows: B.
        policy: one for all, or one for each.

    Raises:
        ValueError: no policies, other counts than rows, or one that doesn't fit the model.
    """
    own = [policy] * rows if isinstance(policy, ExitPolicy) else policy
    if not isinstance(own, Sequence) or not all(isinstance(p, ExitPolicy) for p in own):
        raise ValueError(
            "policy is an exit policy, such as MaxProb(0.9), or one for each row; got "
            f"{policy!r:.80}"
        )
    if len(own) != rows:
        raise ValueError(f"there are {rows} rows, and {len(own)} policies: give one for each")
    for each in policies.kinds_of(own):
        policies.check(each, model.num_exits, model.num_classes, model.problem)
    return list(own)


def by_row(
    model: MultiExitModel, own: Sequence[ExitPolicy], max_exit: int | Sequence[int] | None = None
) -> tuple[exit_loop.Decide, policies.State]:
    """What happens at an exit, and the state before the first one.

    Args:
        model: that runs the rows.
        own: the policy of each.
        max_exit: the exit where rows leave at the latest, for all or for each; None is the last.

    Raises:
        ValueError: no such exit, or other counts than rows.
    """
    last_B = last_exits(model.num_exits, len(own), max_exit)
    device = next(model.parameters()).device
    per_row = policies.PerRow(policies.kinds_of(own))
    state = per_row.row_state(own, device)
    state[LAST] = torch.from_numpy(last_B.astype("int64")).to(device)

    def decide(exit: int, carry: Any, memory: Any, state: Any) -> exit_loop.Decision:
        decision = model.decide(per_row, exit, carry, memory, state)
        return decision._replace(stop_B=decision.stop_B | (state[LAST] <= exit))

    return decide, state
