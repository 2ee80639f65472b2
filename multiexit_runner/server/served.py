"""What a service serves: a network with the reading and the words around it.

Letters: C classes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from multiexit_runner import answering
from multiexit_runner.classifier import Classifier, numbers_of
from multiexit_runner.server.exported import ExportedNetwork
from multiexit_runner.server.scheduler import Network


class Prepared(NamedTuple):
    """An input as the network takes it, and whether something of it was cut off."""

    item: Any
    truncated: bool


class Served(Protocol):
    """An export, or a model of torch."""

    network: Network[Any]
    kind: str
    """`"text"` or `"image"`."""
    problem: str
    num_classes: int
    labels: list[Any] | None
    exits: list[int]
    """The layer behind which each exit stands, counted from 0."""
    policy: str
    """Of requests without one, as it is typed."""
    certificate: Mapping[str, Any] | None

    def prepare(self, item: Any, where: str) -> Prepared:
        """Read an input.

        Raises:
            ValueError: one that can't be read.
        """
        ...

    def parse(self, policy: str | None, numbers: Mapping[str, float]) -> Any:
        """A row's policy, as the network takes it.

        Args:
            policy: as it is typed; None is the service's own.
            numbers: in place of its numbers.

        Raises:
            ValueError: a policy that the network can't take.
        """
        ...

    def numbers(self, policy: Any) -> Mapping[str, float]:
        """The numbers of a parsed policy."""
        ...


class ServedExport:
    """An exported network, without torch.

    Args:
        classifier: of the export.
        policy: other numbers for its policy, as typed; empty are its own.

    Raises:
        ValueError: another policy than that of the graphs.
    """

    def __init__(self, classifier: Classifier, policy: str = ""):
        runner = classifier.runner
        self._classifier = classifier
        self.network = ExportedNetwork(runner)
        self.kind: str = classifier.kind
        self.problem: str = runner.problem
        self.labels: list[Any] | None = runner.labels
        self.num_classes: int = runner.settings["num_classes"]
        self.exits: list[int] = runner.settings["exits"]
        if policy:
            runner.set(**numbers_of(policy, runner.settings["policy"], runner.knobs))
        self.policy = policy or classifier.policy_name()
        unchanged = all(runner.settings["policy"].get(k) == v for k, v in runner.knobs.items())
        self.certificate = runner.settings["policy"].get("certificate") if unchanged else None

    def prepare(self, item: Any, where: str) -> Prepared:
        """Read an input, as the classifier does."""
        return Prepared(*self._classifier.encode(item, where))

    def parse(self, policy: str | None, numbers: Mapping[str, float]) -> dict[str, float]:
        """The numbers in place of those of the graphs' policy."""
        runner = self._classifier.runner
        own = {} if policy is None else numbers_of(policy, runner.settings["policy"], runner.knobs)
        runner.numbers(1, {**own, **numbers})
        return {**runner.knobs, **own, **numbers}

    def numbers(self, policy: Mapping[str, float]) -> Mapping[str, float]:
        """The numbers themselves."""
        return policy


def said(served: Served, answer_C: np.ndarray, exit: int, top_k: int) -> answering.Answer:
    """What an answer says, as `Classifier` says it."""
    words = answering.answer_of(answer_C, served.problem, served.labels, top_k)
    return {**words, "exit": exit, "layers": served.exits[exit] + 1}
