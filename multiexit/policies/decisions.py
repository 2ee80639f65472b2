"""Policies where a row is several decisions: it stops when each of its decisions would.

Letters: B batch rows, T tokens, C outputs, P decisions of a row, K what a decision is among (see
`multiexit.problems`).
"""

from dataclasses import dataclass

from torch import Tensor

from multiexit.policies.base import ROW, ExitPolicy, State, answer, step
from multiexit.problems import PROBLEMS, decisions


def for_problem(policy: ExitPolicy, problem: str) -> ExitPolicy:
    """The policy for a model's outputs, which may be several decisions a row.

    Args:
        policy: of single decisions: it sees logits [N, K], N = B·P.
        problem: a key of `PROBLEMS`.

    Returns:
        A policy that sees outputs [B, C], or of tokens [B, T, C]; `state["asked"]` [B, T] says
        which tokens are asked for, where not all are.

    Example:
        Two yes-or-no labels, of which the second is unsure at the first exit:

        >>> import torch
        >>> from multiexit.policies import MaxProb
        >>> policy = for_problem(MaxProb(0.9), "multi-label")
        >>> policy.step(policy.init(z := torch.tensor([[5.0, 0.1], [5.0, -4.0]])), z)[1]
        tensor([False,  True])
    """
    return policy if PROBLEMS[problem].single else _EachDecision(policy, problem)


@dataclass(frozen=True)
class _EachDecision(ExitPolicy):
    """Runs a policy on every decision, and stops rows whose decisions all stop."""

    policy: ExitPolicy
    problem: str

    def init(self, logits_BC: Tensor) -> State:
        return self._by_row(self.policy.init(self._flat(logits_BC)), self._shape(logits_BC))

    def step(self, state: State, logits_BC: Tensor) -> tuple[State, Tensor]:
        shape = self._shape(logits_BC)
        inner, stop_N = step(self.policy, self._inner(state, shape), self._flat(logits_BC))
        stop_BP = stop_N.view(shape)
        if "asked" in state:
            stop_BP = stop_BP | ~state["asked"]
        of_rows = {name: value for name, value in state.items() if _of_rows(name)}
        return {**of_rows, **self._by_row(inner, shape)}, stop_BP.all(1)

    def answer(self, state: State, logits_BC: Tensor) -> Tensor:
        shape = self._shape(logits_BC)
        answer_NK = answer(self.policy, self._inner(state, shape), self._flat(logits_BC))
        return PROBLEMS[self.problem].join(answer_NK.view(*shape, -1))

    def _inner(self, state: State, shape: tuple[int, int]) -> State:
        """The state of single decisions: each of a row's has what the row has."""
        return {
            name: (
                value[:, None].expand(shape).flatten() if _of_rows(name) else value.flatten(0, 1)
            )
            for name, value in state.items()
            if name != "asked"
        }

    def _flat(self, logits_BC: Tensor) -> Tensor:
        """[N, K], row after row."""
        return decisions(logits_BC, self.problem)

    def _shape(self, logits_BC: Tensor) -> tuple[int, int]:
        return logits_BC.shape[0], logits_BC.shape[1]

    def _by_row(self, state: State, shape: tuple[int, int]) -> State:
        return {
            name: value.view(*shape, *value.shape[1:])
            for name, value in state.items()
            if not _of_rows(name)
        }


def _of_rows(name: str) -> bool:
    """Whether an entry of a state is of a row, not of each of its decisions."""
    return name == "certainty" or name.startswith(ROW)
