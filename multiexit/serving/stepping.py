"""A model run exit by exit, on rows whose policies are their own: for a service.

Letters: B batch rows, T tokens.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from multiexit.arguments import unknown
from multiexit.backbones import select
from multiexit.backbones.base import Carry
from multiexit.model import exit_loop
from multiexit.model.heads import CertainHead, Memory
from multiexit.model.model import MultiExitModel
from multiexit.policies import (
    POLICIES,
    Certainty,
    ExitPolicy,
    FixedExit,
    Known,
    PerRow,
    State,
    check,
    kinds_of,
    parse,
    row_numbers,
    scales,
    sweep_settings,
)
from multiexit.policies.confidence import NOT_CERTAIN
from multiexit.policies.registry import from_json, to_json
from multiexit.problems import classes_of_decision
from multiexit.serving.classifier import Classifier
from multiexit.serving.folding import for_inference
from multiexit.serving.onnx.knobs import ranges
from multiexit.serving.streaming import start
from multiexit_runner.knobs import Ranges, narrowed
from multiexit_runner.leaving import broken_rows
from multiexit_runner.server.lengths import filled_length
from multiexit_runner.server.network import Outcome
from multiexit_runner.server.served import Served, example_inputs
from multiexit_runner.settings import check_range
from multiexit_runner.turning import typed_policy


class Rows(NamedTuple):
    """Rows before an exit: what `MultiExitModel.decide` takes."""

    carry: Carry
    memory: Memory
    state: State


class ModelNetwork:
    """A model as a `Network` of the scheduler.

    Args:
        model: in evaluation mode.
        kinds: of the policies that rows may have.

    Raises:
        ValueError: train mode; a policy that goes by a certainty, which this model's heads lack.
    """

    def __init__(self, model: MultiExitModel, kinds: Sequence[ExitPolicy]):
        exit_loop.check_evaluating(model)
        certain = any(isinstance(head, CertainHead) for head in model.heads)
        if not certain and any(isinstance(kind, Certainty) for kind in kinds):
            raise ValueError(NOT_CERTAIN)  # else no row could be answered, of whatever policy
        self.model = for_inference(model)
        self.rows = PerRow(kinds_of(kinds))
        self.num_exits = model.num_exits
        self._device = next(model.parameters()).device
        self._limit = model.backbone.limits()[1]

    @property
    def runtime(self) -> dict[str, Any]:
        """What runs it, to be said."""
        return {
            "backend": "torch",
            "device": str(self._device),
            "precision": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }

    def length(self, item: Mapping[Any, Tensor]) -> int:
        """How many tokens a text is filled up to; 0 of other inputs."""
        mask = item.get("attention_mask")
        return 0 if mask is None else filled_length(len(mask), self._limit)

    @torch.inference_mode()
    def first(self, items: Sequence[Mapping[Any, Tensor]], policies: Sequence[ExitPolicy]) -> Rows:
        """Rows before the first exit, filled up to their length."""
        length = self.length(items[0])

        def filled(tensor: Tensor) -> Tensor:
            return F.pad(tensor, (0, length - len(tensor))) if length else tensor

        batch = {name: torch.stack([filled(item[name]) for item in items]) for name in items[0]}
        carry = start(self.model, batch, self._device)
        return Rows(carry, {}, self.rows.row_state(policies, self._device))

    @torch.inference_mode()
    def run(self, exit: int, group: Rows) -> Outcome[Rows]:
        """Run the stages up to an exit, its head and the rows' policies."""
        said = self.model.decide(self.rows, exit, *group)
        logits_BC = said.logits_BC.float().cpu().numpy()
        return Outcome(
            said.answer_BC.float().cpu().numpy(),
            said.stop_B.cpu().numpy(),
            broken_rows(exit, logits_BC),
            Rows(said.carry, said.memory, said.state),
        )

    @torch.inference_mode()
    def take(self, group: Rows, keep_B: np.ndarray) -> Rows:
        """Some of the rows."""
        keep = torch.from_numpy(np.flatnonzero(keep_B)).to(self._device)
        return Rows(*(select(part, keep) for part in group))

    @torch.inference_mode()
    def merge(self, groups: Sequence[Rows]) -> Rows:
        """One group of several."""
        return Rows(*(exit_loop.join(list(parts)) for parts in zip(*groups, strict=True)))

    def shape_key(self, group: Rows) -> Hashable:
        """Shapes of all tensors but for the rows, and types."""
        return tuple(map(exit_loop.tree_key, group))


def of_model(classifier: Classifier, kinds: Sequence[str] = ()) -> Served:
    """A model of torch, to be served.

    Args:
        classifier: with the policy of requests that have none.
        kinds: policies that requests may name, such as `"patience"`, beside that one's.

    Raises:
        ValueError: a policy that isn't there, or doesn't fit the model.
    """
    model, own = classifier.model, classifier.policy
    if own is None:
        own = FixedExit(model.num_exits - 1)
    known = Known(model.num_exits, classes_of_decision(model.problem, model.num_classes))
    examples = []
    for name in kinds:
        if name not in POLICIES:
            raise unknown("policy", name, sorted(POLICIES))
        examples.append(sweep_settings(POLICIES[name], known, (0.5,))[0])
        check(examples[-1], model.num_exits, model.num_classes, model.problem)
    settings = () if model.calibration is None else model.calibration.settings
    network = ModelNetwork(model, [own, *examples, *(each.policy for each in settings)])

    def between(policy: ExitPolicy) -> Ranges:
        numbers = row_numbers(policy)
        return narrowed(numbers, ranges(policy, numbers, known), scales(policy, known))

    def typed(policy: ExitPolicy) -> str:
        return typed_policy(to_json(policy))

    def read(policy: str | None, numbers: Mapping[str, float]) -> ExitPolicy:
        parsed = own if policy is None else parse(policy)
        for name, number in numbers.items():
            if name not in row_numbers(parsed):
                have = ", ".join(row_numbers(parsed)) or "no numbers"
                raise ValueError(f"no {name} to turn: the policy {typed(parsed)} has {have}")
            parsed = replace(parsed, **{name: number})
        network.rows.row_state([parsed], "cpu")  # refuses other kinds
        on_scale = {} if parsed is own else scales(parsed, known)
        for name, number in row_numbers(parsed).items():
            check_range(name, on_scale.get(name), number)
        check(parsed, model.num_exits, model.num_classes, model.problem)
        return parsed

    return Served(
        network=network,
        runtime=network.runtime,
        kind=str(classifier.kind),
        problem=model.problem,
        labels=model.labels,
        num_classes=model.num_classes,
        exits=model.exits,
        policy=typed(own),
        kinds=[*dict.fromkeys([typed(own).partition("=")[0], *kinds])],
        certificate=None if own.certificate is None else own.certificate.to_json(),
        examples=example_inputs(classifier, model.preprocessing),
        encode=classifier.encode,
        say=classifier.say,
        parse=read,
        numbers=row_numbers,
        typed=typed,
        turns=[between(policy) for policy in (own, *examples)],
        calibration=None if model.calibration is None else model.calibration.to_json(),
        restore=lambda policy: from_json({**policy}, [type(each.policy) for each in settings]),
    )
