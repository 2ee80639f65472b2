"""Choose the exits that are worth what they cost.

Letters: M exits, B batch rows.
"""

from multiexit import policies
from multiexit.evaluation.outputs import Outputs, exit_shares, need_outputs
from multiexit.model.latency import Latency
from multiexit.policies import ExitPolicy, per_exit


def exits_that_pay(
    outputs: Outputs, policy: ExitPolicy, latency: Latency, batch_size: int = 1
) -> list[int]:
    """The exits to keep so that a batch is answered soonest.

    Asking an exit costs time, and saves it for rows that leave there. Exit after exit is given up,
    each time the one without which the mean time is least, until no other is worth it:

        mean time = Latency.expected_ms(shares of rows by exit, batch size)

    Rows that would have left at an exit that is given up leave later, as the policy then decides.

    Args:
        outputs: from `multiexit.collect` on data like that to come.
        policy: that will stop them; one number for all exits.
        latency: from `multiexit.profile`, of the same model.
        batch_size: of the batches to come.

    Returns:
        Indices of exits, rising, counted from 0; for `multiexit.keep_exits`.

    Raises:
        ValueError: no rows, a latency table of other exits, or a policy with a number per exit.

    Example:
        Nobody is sure at the second exit, and asking it takes 5 ms:

        >>> import torch, multiexit as mx
        >>> logits_MBC = torch.tensor([[[9.0, 0], [0, 0]], [[0, 0], [0, 0]], [[9, 0], [9, 0]]])
        >>> cost = mx.Cost((1, 2, 3), (1, 2, 3), (1, 2, 3), full_macs=3)
        >>> outputs = mx.Outputs(logits_MBC, torch.tensor([0, 0]), cost)
        >>> stages, check = ((9.0,), (9.0,), (9.0,)), ((1.0,), (5.0,), (1.0,))
        >>> latency = mx.Latency("a CPU", (1,), (1.0,), stages, check, (0.1,), (29.0,))
        >>> mx.exits_that_pay(outputs, mx.MaxProb(0.9), latency)
        [0, 2]
    """
    need_outputs(outputs)
    M = outputs.num_exits
    if len(latency.stages_ms) != M:
        raise ValueError(f"the latency table has {len(latency.stages_ms)} exits, the outputs {M}")
    if per_exit(policy):
        raise ValueError(f"{policy} has a number per exit; give one with a single number")

    def mean_ms(exits: list[int]) -> float:
        certainty = None if outputs.certainty_MB is None else outputs.certainty_MB[exits]
        exit_B, _ = policies.answers(
            policy, outputs.logits_MBC[exits], certainty, outputs.problem, outputs.asked_BT
        )
        shares_M = exit_shares(exit_B, len(exits))
        return latency.with_exits(exits).expected_ms(shares_M.tolist(), batch_size)

    exits = list(range(M))
    best = mean_ms(exits)
    while len(exits) > 1:
        candidates = [[*exits[:m], *exits[m + 1 :]] for m in range(len(exits) - 1)]
        times = [mean_ms(candidate) for candidate in candidates]
        if min(times) > best:
            break
        best = min(times)
        exits = candidates[times.index(best)]
    return exits
