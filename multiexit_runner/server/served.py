"""What a service serves: a network with the reading and the words around it."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from multiexit_runner.answering import Answer, Encoded
from multiexit_runner.classifier import Classifier
from multiexit_runner.knobs import Ranges
from multiexit_runner.server.exported import ExportedNetwork
from multiexit_runner.server.network import Network
from multiexit_runner.turning import numbers_of, saved_numbers, typed_policy


@dataclass(frozen=True)
class Served:
    """An export, or a model of torch.

    Args:
        network: run exit by exit.
        runtime: what runs it, to be said: `backend`, `precision`, `threads` and more.
        kind: `"text"` or `"image"`.
        problem, labels: of the network.
        num_classes: C.
        exits: the layer behind which each exit stands, counted from 0.
        policy: of requests without one, as it is typed.
        kinds: of policies that requests may name.
        certificate: of that policy, if it has one.
        examples: inputs as a request has them, the shortest first, to be run before any comes.
        encode: makes an input ready; the number is its place in the request.
        say: from logits, exit, input and `top_k` to an answer.
        parse: from a policy as typed, or None for the service's own, and numbers in place of its
            own, to what the network takes. Numbers far off their scale are refused.
        numbers: of what `parse` gave.
        typed: what `parse` gave as it is typed.
        turns: of each kind of policy that requests may have, its numbers with what they may be.
        calibration: settings of a policy with what they give, as
            `multiexit.policies.CalibrationTable.to_json` gives them; None where there are none.
        restore: from a policy of that table to what the network takes.
    """

    network: Network[Any]
    runtime: Mapping[str, Any]
    kind: str
    problem: str
    labels: Sequence[Any] | None
    num_classes: int
    exits: Sequence[int]
    policy: str
    kinds: Sequence[str]
    certificate: Mapping[str, Any] | None
    examples: Sequence[Any]
    encode: Callable[[Any, int], Encoded]
    say: Callable[[np.ndarray, int, Encoded, int], Answer]
    parse: Callable[[str | None, Mapping[str, float]], Any]
    numbers: Callable[[Any], Mapping[str, float]]
    typed: Callable[[Any], str]
    turns: Sequence[Ranges]
    calibration: Mapping[str, Any] | None
    restore: Callable[[Mapping[str, Any]], Any]


def of_export(classifier: Classifier, kinds: Sequence[str] = ()) -> Served:
    """An export, without torch.

    Args:
        classifier: with the policy of requests that have none.
        kinds: of policies that requests may name; the graphs hold one.

    Raises:
        ValueError: another kind than that one.
    """
    runner = classifier.runner
    held, standing = runner.settings["policy"], runner.knobs

    def turned(numbers: Mapping[str, float]) -> Mapping[str, float]:
        runner.numbers(1, numbers)  # refuses what can't be
        return {**standing, **numbers}

    def parse(policy: str | None, numbers: Mapping[str, float]) -> Mapping[str, float]:
        own = {} if policy is None else numbers_of(policy, held, standing)
        return turned({**own, **numbers})

    def typed(numbers: Mapping[str, float]) -> str:
        return typed_policy({**held, **numbers})

    own = typed(standing).partition("=")[0]
    if others := [kind for kind in kinds if kind != own]:
        raise ValueError(f"the graphs of this export hold {own}, and no {others[0]}")
    unchanged = all(held.get(name) == number for name, number in standing.items())
    return Served(
        network=ExportedNetwork(runner),
        runtime=runner.runtime,
        kind=str(classifier.kind),
        problem=runner.problem,
        labels=runner.labels,
        num_classes=runner.settings["num_classes"],
        exits=runner.settings["exits"],
        policy=typed(standing),
        kinds=[own],
        certificate=held.get("certificate") if unchanged else None,
        examples=example_inputs(classifier, runner.preprocessing),
        encode=classifier.encode,
        say=classifier.say,
        parse=parse,
        numbers=lambda policy: policy,
        typed=typed,
        turns=[runner.ranges],
        calibration=runner.settings["calibration"],
        restore=lambda policy: turned(saved_numbers(policy, held, standing)),
    )


def example_inputs(classifier: Any, preprocessing: Mapping[str, Any]) -> list[Any]:
    """Inputs as a classifier takes them, from the shortest on: what they say is of no account.

    Args:
        classifier: `multiexit.Classifier`, or that of an export.
        preprocessing: of its model.
    """
    if classifier.kind == "image":
        from PIL import Image

        _, height, width = preprocessing["shape"]
        file = io.BytesIO()
        Image.new("RGB", (width, height)).save(file, "PNG")
        return [file.getvalue()]
    most = preprocessing.get("max_length", 128)  # with a word less for each special token
    counts = [1 << n for n in range(int(most).bit_length()) if 1 << n < most]
    if classifier.paired:
        return [("a " * count, "a " * count) for count in counts[:-1] or counts]
    return ["a " * count for count in counts or [1]]
