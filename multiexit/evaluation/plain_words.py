"""A policy, and a recommendation of one, in words for those who never read a paper on exits."""

from collections.abc import Sequence
from typing import Any

from multiexit.evaluation import metrics
from multiexit.evaluation.judging import Row
from multiexit.evaluation.recommendation import Recommendation
from multiexit.evaluation.targets import mean_ms
from multiexit.model.latency import Latency
from multiexit.policies import (
    Beem,
    Certainty,
    Entropy,
    ExitPolicy,
    FixedExit,
    Margin,
    MaxProb,
    MostConfident,
    NormalizedEntropy,
    Patience,
    PatientConfident,
    ProductOfExperts,
    Settled,
)
from multiexit.policies.registry import policy_name

FAR = 0.05
"""How far the first exit's score may be below the last one's before another training is advised."""


def rule(policy: ExitPolicy, layers_M: Sequence[int]) -> str:
    """When an input stops, in a sentence.

    Args:
        policy: any; one of the user's own goes by its name.
        layers_M: the layers up to each exit.

    Example:
        >>> import multiexit as mx
        >>> from multiexit.evaluation.plain_words import rule
        >>> rule(mx.MaxProb(0.87), (2, 4, 6))
        "Stop when the answer's probability is at least 0.87."
        >>> rule(mx.FixedExit(1), (2, 4, 6))
        'Stop every input after layer 4 (exit 1), whatever it is.'
    """
    if _never(policy, len(layers_M)):
        surest = isinstance(policy, MostConfident)
        answered = ", and is answered as the surest exit does" if surest else ""
        return f"No input stops early: each runs through all {layers_M[-1]} layers{answered}."
    match policy:
        case FixedExit(exit=exit):
            return f"Stop every input after layer {layers_M[exit]} (exit {exit}), whatever it is."
        case Patience(patience=patience, tolerance=tolerance):
            near = "the same answer" if tolerance is None else f"answers within {tolerance:.4g}"
            return f"Stop when {patience + 1} exits in a row gave {near}."
        case PatientConfident(threshold=threshold, patience=patience):
            doubt = f"little doubt (entropy, of 0 to 1, below {_number(threshold)})"
            return f"Stop when {patience} exits in a row had {doubt}."
        case MaxProb(threshold=threshold):
            return f"Stop when the answer's probability is at least {_number(threshold)}."
        case MostConfident(threshold=threshold):
            return (
                f"Stop when the answer's probability is at least {_number(threshold)}; where that "
                "never comes, answer as the surest exit did."
            )
        case ProductOfExperts(threshold=threshold):
            return (
                "Multiply the probabilities of the exits so far, and stop when the likeliest "
                f"answer's is at least {_number(threshold)}."
            )
        case Beem(threshold=threshold):
            return (
                "Add up how sure the exits are that gave the same answer in a row, later ones "
                f"counting more or by their accuracy, and stop at {_number(threshold)}."
            )
        case Margin(threshold=threshold):
            lead = f"leads the second's by at least {_number(threshold)}"
            return f"Stop when the likeliest answer's probability {lead}."
        case Entropy(threshold=threshold):
            return f"Stop when the doubt (entropy, 0 is none) is below {_number(threshold)}."
        case NormalizedEntropy(threshold=threshold):
            return f"Stop when the doubt (entropy, of 0 to 1) is at most {_number(threshold)}."
        case Settled(threshold=threshold):
            moved = f"1 − cosine to the one before is below {_number(threshold)}"
            return f"Stop when the vector has stopped turning: {moved}."
        case Certainty(threshold=threshold):
            sure = f"estimate of being right is at least {_number(threshold)}"
            return f"Stop when the exit's own {sure}."
    return f"Stop by {policy_name(policy)}."


def _never(policy: ExitPolicy, exits: int) -> bool:
    """Whether its numbers are such that no exit before the last can stop."""
    if isinstance(policy, Patience):
        return policy.patience >= exits - 1
    if isinstance(policy, PatientConfident) and policy.patience >= exits:
        return True
    t: Any = getattr(policy, "threshold", None)
    early = t[: exits - 1] if isinstance(t, tuple) else (t,)
    match policy:
        case MaxProb() | MostConfident() | ProductOfExperts() | Margin() | Certainty():
            return all(t > 1 for t in early)
        case Entropy() | PatientConfident() | Settled():
            return all(t <= 0 for t in early)
        case NormalizedEntropy():
            return all(t < 0 for t in early)
    return False


def explain(
    advice: Recommendation,
    layers_M: Sequence[int],
    metric: str | metrics.Metric,
) -> str:
    r"""A recommendation in words: the rule, what it keeps, what it costs, and how sure that is.

    Args:
        advice: from `recommend`.
        layers_M: the layers up to each exit.
        metric: of the scores.

    Example:
        Of made-up logits of three exits, each surer and righter than the one before:

        >>> import textwrap, torch, multiexit as mx
        >>> from multiexit.evaluation.plain_words import explain
        >>> from multiexit.evaluation.recommendation import recommend
        >>> labels_B = torch.arange(400) % 2
        >>> right_BC = torch.nn.functional.one_hot(labels_B)
        >>> noise_MBC = torch.randn(3, 400, 2, generator=torch.Generator().manual_seed(0))
        >>> logits_MBC = torch.tensor([1.0, 2, 3])[:, None, None] * right_BC + noise_MBC
        >>> cost = mx.Cost((2, 4, 6), (20, 40, 60), (5, 10, 15), full_macs=57)
        >>> advice = recommend(mx.Outputs(logits_MBC, labels_B, cost), speedup=1.5)
        >>> for line in explain(advice, cost.layers_M, "accuracy").splitlines():
        ...     print(textwrap.fill(line, 90))
        Stop when the likeliest answer's probability leads the second's by at least 0.71.
        On 200 held-out rows that gets 96.0 % right (full network 98.5 %, difference -2.5 points,
        95 % between -5.2 and +0.2).
        It runs 4.1 of 6 layers on average (1.5 times fewer; 1.4 times fewer MACs, the heads'
        included).
        28 % of the inputs leave after layer 2, half by layer 4, and 34 % run to layer 6.
        7 of the 200 answers differ from the full network's.
        These rows can't tell its score from the full network's.
        200 other rows chose it among 4 kinds of rules: the best score of those fast enough there
        (1.50 times; here a little less than asked).
    """
    row, full = advice.row, advice.full
    lines = [rule(row.policy, layers_M), _kept(advice, metric), _speed(row, layers_M)]
    lines.append(_exits(row.shares_M, layers_M))
    if advice.changed is not None:
        lines.append(_changes(advice.rows_judged, advice.changed))
    lines.append(_verdict(advice))
    if isinstance(row.policy, FixedExit) and row.shares_M[-1] < 1:
        lines.append(
            "No rule that looks at the input did better on the rows that chose, so a network cut "
            "there for good serves as well (multiexit truncate)."
        )
    if full.mean_layers == row.mean_layers:
        lines.append("Nobody leaves early: no faster setting reached the target.")
    lines.append(_origin(advice))
    return "\n".join(lines)


def time(advice: Recommendation, latency: Latency, batch_size: int) -> str:
    """What a batch takes, and on which machine that was measured.

    Args:
        advice: from `recommend`.
        latency: of the model.
        batch_size: rows at the start.
    """
    took = mean_ms(advice.row, latency, batch_size)
    full = latency.at(latency.full_ms, batch_size)
    return (
        f"A batch of {batch_size} takes {took:.3g} ms on average, {full:.3g} ms without early "
        f"exits (by the model's latency table, measured on {latency.machine})."
    )


def weak_exits(scores_M: Sequence[float], rows: int, text: bool) -> str | None:
    """What to train otherwise where the first exit is far behind the last; None where it isn't.

    Args:
        scores_M: of each exit, as if all left there.
        rows: of which.
        text: whether the inputs are texts, whose exits may have a pooler each.

    Example:
        >>> from multiexit.evaluation.plain_words import weak_exits
        >>> import textwrap
        >>> print(textwrap.fill(weak_exits([0.7, 0.8, 0.9], 500, text=False), 90))
        Of all 500 rows, the first exit is 20.0 points below the last one. Exits that are trained
        to be good early let more inputs leave: try --recipe leebert-group-dro (see "Choose a
        method").
        >>> weak_exits([0.89, 0.9], 500, text=False)
    """
    behind = scores_M[-1] - scores_M[0]
    if behind < FAR:
        return None
    head = " --head own-pooler" if text else ""
    return (
        f"Of all {rows} rows, the first exit is {100 * behind:.1f} points below the last one. "
        "Exits that are trained to be good early let more inputs leave: try --recipe "
        f'leebert-group-dro{head} (see "Choose a method").'
    )


def _kept(advice: Recommendation, metric: str | metrics.Metric) -> str:
    low, high = (f"{100 * end:+.1f}" for end in advice.interval)
    score, full = (f"{100 * row.score:.1f}" for row in (advice.row, advice.full))
    name = metrics.name(metric)
    keeps = (
        f"gets {score} % right (full network {full} %"
        if name == "accuracy"
        else f"scores {score}, {metrics.label(name)} (full network {full}"
    )
    return (
        f"On {advice.rows_judged} held-out rows that {keeps}, difference "
        f"{100 * advice.difference:+.1f} points, {100 * advice.confidence:g} % between {low} and "
        f"{high})."
    )


def _speed(row: Row, layers_M: Sequence[int]) -> str:
    macs = row.speedup_macs
    heads = f"{macs:.1f} times fewer MACs" if macs >= 1 else f"{1 / macs:.2f} times as many MACs"
    return (
        f"It runs {row.mean_layers:.1f} of {layers_M[-1]} layers on average "
        f"({row.speedup_layers:.1f} times fewer; {heads}, the heads' included)."
    )


def _exits(shares_M: Sequence[float], layers_M: Sequence[int]) -> str:
    """Where inputs leave: the first exit, the middle one, the last."""
    leaving = [(share, layer) for share, layer in zip(shares_M, layers_M, strict=True) if share]
    if len(leaving) == 1:
        return f"All inputs leave after layer {leaving[0][1]}."
    total, half = 0.0, leaving[-1][1]
    for share, layer in leaving:
        total += share
        if total >= 0.5:
            half = layer
            break
    (first, least), (last, most) = leaving[0], leaving[-1]
    middle = f" half by layer {half}," if least < half < most else ""
    return (
        f"{100 * first:.0f} % of the inputs leave after layer {least},{middle} and "
        f"{100 * last:.0f} % run to layer {most}."
    )


def _changes(rows: int, changed: int) -> str:
    if changed == 0:
        return f"None of the {rows} answers differs from the full network's."
    return f"{changed} of the {rows} answers differ from the full network's."


def _verdict(advice: Recommendation) -> str:
    low, high = advice.interval
    if advice.target == "max_loss":
        points = f"{100 * advice.wanted:g}"
        asked = f"the {points} point{'' if points == '1' else 's'} that you allow"
        if low >= -advice.wanted:
            return f"So a loss within {asked} is sure enough ({100 * advice.confidence:g} %)."
        sure = "more rows would"
        if advice.changed is not None:
            sure += (
                ", or `multiexit calibrate --risk`, whose bound on changed answers holds for new "
                "rows"
            )
        if advice.breaks:
            return (
                f"So it loses more than {asked}: it did better on the rows that chose it. To "
                f"choose better, {sure}."
            )
        return f"So these rows can't promise a loss within {asked}: {sure}."
    if low > 0:
        return "So it is better than the full network, beyond chance."
    if high < 0:
        return (
            "So it is worse than the full network, beyond chance: that is the price of the speed."
        )
    return "These rows can't tell its score from the full network's."


def _origin(advice: Recommendation) -> str:
    """Why this one, and of which rows."""
    why = (
        "the fastest that lost no more there"
        if advice.target == "max_loss"
        else "the best score of those fast enough there"
    )
    text = (
        f"{advice.rows_chosen} other rows chose it among {len(advice.tried)} kinds of rules: {why}"
    )
    if advice.target == "speedup" and advice.row.speedup_layers < advice.wanted:
        text += f" ({advice.tried[0].speedup_layers:.2f} times; here a little less than asked)"
    if advice.repeated:
        text += f". {advice.repeated} rows that repeat theirs were left out of the judging"
    return f"{text}."


def _number(value: Any) -> str:
    """A threshold, or one per exit."""
    if isinstance(value, tuple):
        return ", then ".join(_number(each) for each in value)
    return f"{value:.4g}"
