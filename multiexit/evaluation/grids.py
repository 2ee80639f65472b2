"""Settings of policies to try."""

from multiexit import policies, problems
from multiexit.arguments import unknown
from multiexit.evaluation.outputs import Outputs
from multiexit.policies import ExitPolicy, Known, one_number
from multiexit.problems import are_vectors


def policy_settings(
    policy: type[ExitPolicy] | ExitPolicy, M: int, C: int, problem: str | None = None
) -> list[ExitPolicy]:
    """A policy's settings by rising number, for a model.

    Args:
        policy: a class with one number to choose, or a policy whose first number is chosen.
        M: exits.
        C: outputs.
        problem: the model's; None is classification, or with one output regression.

    Raises:
        ValueError: a class with more than one number to choose, or nothing to choose; a policy
            that doesn't fit the model.
    """
    settings = one_number(policy, Known(M, problems.classes_of_decision(problem, C)))
    policies.check(settings[0], M, C, problem)
    return settings


def default_policies(outputs: Outputs, model_policy: ExitPolicy | None = None) -> list[ExitPolicy]:
    """A sweep that fits the task: every patience, a range of thresholds, and no early exit.

    Args:
        outputs: of the model.
        model_policy: the model's own policy, which comes first.
    """
    known = _known(outputs)
    kinds: list[type[ExitPolicy] | ExitPolicy] = [policies.Certainty] * _has_certainty(outputs)
    if are_vectors(outputs.problem):
        kinds.append(policies.Settled)
    elif known.num_classes == 1:
        kinds.append(policies.Patience(1, tolerance=0.1 * (known.apart or 1.0)))
    else:
        kinds += [policies.Patience, policies.MaxProb, policies.Entropy]
    grid = [] if model_policy is None else [model_policy]
    for kind in kinds:
        grid += policies.sweep_settings(kind, known, policies.FEW[1::2])
    return list(dict.fromkeys([*grid, policies.FixedExit(known.num_exits - 1)]))


def family(policy: str | type[ExitPolicy] | ExitPolicy, outputs: Outputs) -> list[ExitPolicy]:
    """Settings of one policy over its whole range, from nobody to everyone leaving early.

    Args:
        policy: its name on the command line, its class, or one whose first number is tried.
        outputs: of the model.

    Raises:
        ValueError: an unknown name, or a policy that doesn't fit the model.
    """
    if isinstance(policy, str):
        if policy not in policies.POLICIES:
            raise unknown("policy", policy, sorted(policies.POLICIES))
        policy = policies.POLICIES[policy]
    return policies.sweep_settings(policy, _known(outputs))


def _known(outputs: Outputs) -> policies.Known:
    """The facts that decide over a sweep's range."""
    M, K = outputs.num_exits, problems.classes_of_decision(outputs.problem, outputs.num_classes)
    moves = outputs.logits_MBC.diff(dim=0).abs()
    return policies.Known(M, K, float(moves.max()) if K == 1 and M > 1 else 1.0)


def _has_certainty(outputs: Outputs) -> bool:
    return outputs.certainty_MB is not None
