"""Fast prediction: batches that shrink when it pays, and fill up again.

Letters: M exits, B batch rows, T tokens, C classes.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from multiexit import policies
from multiexit.arguments import check_whole
from multiexit.backbones.base import select
from multiexit.data import padding
from multiexit.model import exit_loop
from multiexit.model.exit_loop import Prediction
from multiexit.model.latency import Latency, check_latency
from multiexit.model.model import MultiExitModel
from multiexit.policies import ExitPolicy
from multiexit.runtime import compiled
from multiexit.serving import streaming
from multiexit.serving.folding import for_inference
from multiexit.serving.own_policies import by_row, of_rows
from multiexit.serving.unchanged import unchanged
from multiexit_runner.reading import Window
from multiexit_runner.user_line import user_level
from multiexit_runner.waiting import Waiting

LENGTH_STEP = 16  # compiled engines see lengths of so many tokens apart


class Engine:
    """Predicts with a trained model as fast as it can; answers are those of `model.predict`.

    Columns of padding that all rows share are cut. Rows that stopped leave the batch where that
    pays: at once, or with a latency table as soon as dragging them along would have cost more.

    An engine runs the model itself, as it is at each call. Of convolutional models, and for batches
    of more than a row, it runs a copy with batch norms folded (`multiexit.serving.folding`): once
    any weight, statistic, part, hook or setting of the model has changed, the engine refuses such
    batches, and a new one is to be made. A copy of an engine, and one that was pickled, is such a
    new one, with the same policy.

    Args:
        model: in evaluation mode.
        policy: by default the model's own. It stays the engine's, whatever `model.policy` becomes.
        latency: from `multiexit.profile`; by default the model's own, if it was made here.
        compile: compile each segment (its stages, head and the policy) with `torch.compile`;
            or the mode to do it in, such as `"reduce-overhead"` for CUDA graphs. Batches are then
            filled up to powers of two, and text to multiples of 16 tokens, so that shapes are few.

    Raises:
        ValueError: no policy or one that doesn't fit the model, train mode, or a latency table of
            another machine or other exits.

    Example:
        >>> import torch, multiexit as mx
        >>> model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=10).eval()
        >>> engine = mx.Engine(model, mx.MaxProb(0.9))
        >>> engine.predict(torch.rand(4, 3, 32, 32)).exit_B.shape
        torch.Size([4])
    """

    def __init__(
        self,
        model: MultiExitModel,
        policy: ExitPolicy | None = None,
        *,
        latency: Latency | None = None,
        compile: bool | str = False,
    ):
        policy = model.policy if policy is None else policy
        if not isinstance(policy, ExitPolicy):
            raise ValueError(
                "an Engine needs a policy, such as Patience(4): the model has none of its own; got "
                f"{type(policy).__name__}"
            )
        policies.check(policy, model.num_exits, model.num_classes, model.problem)
        self._prepare(model, policy, _usable_latency(model, latency), compile)

    def _prepare(
        self,
        model: MultiExitModel,
        policy: ExitPolicy,
        latency: Latency | None,
        compile: bool | str,
    ) -> None:
        exit_loop.check_evaluating(model)
        self.original, self._compile = model, compile
        self.model = for_inference(model)
        self.latency, self.compiled = latency, bool(compile)
        self._is_unchanged = (lambda: True) if self.model is model else unchanged(model)
        self._go_by(policy)

    def _go_by(self, policy: ExitPolicy) -> None:
        self.policy, compile = policy, self._compile
        self._compiled_decide: exit_loop.Decide | None = None
        if compile:
            mode = compile if isinstance(compile, str) else None
            graphs = 64 * self.model.num_exits  # for each exit, batch size and length
            decide = partial(self.model.decide, policy)
            self._compiled_decide = compiled(decide, graphs, mode=mode, dynamic=False)

    def _decide_by(self, model: MultiExitModel) -> exit_loop.Decide:
        """What happens at an exit of what `model_for` gives."""
        return self._compiled_decide or partial(model.decide, self.policy)

    def model_for(self, rows: int) -> MultiExitModel:
        """What runs a batch of so many rows: for one alone the model itself, unless compiled.

        To tell whether the model has changed all its weights are read, which for one row takes
        longer than a folded copy saves.
        """
        return self.original if rows == 1 and not self.compiled else self.model

    def with_policy(self, policy: ExitPolicy) -> "Engine":
        """Make an engine with another policy on the same copy of the model.

        Args:
            policy: of the new one; this one keeps its own.

        Raises:
            ValueError: a policy that doesn't fit the model.
        """
        model = self.original
        policies.check(policy, model.num_exits, model.num_classes, model.problem)
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._go_by(policy)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {
            "model": self.original,
            "policy": self.policy,
            "latency": self.latency,
            "compile": self._compile,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._prepare(**state)

    @torch.inference_mode()
    def predict(
        self,
        *args: Any,
        policy: ExitPolicy | Sequence[ExitPolicy] | None = None,
        max_exit: int | Sequence[int] | None = None,
        **inputs: Any,
    ) -> Prediction:
        """Answer one batch, as `MultiExitModel.predict` does.

        Args:
            args, inputs: what the model takes, by place and by name.
            policy: for this call, one for all rows or one for each.
            max_exit: the exit where rows leave at the latest, for all or for each.

        Returns:
            The rows' logits [B, C] and exits [B], in the order that the rows came in.

        Raises:
            ValueError: what `MultiExitModel.predict` raises; a model that has changed since a copy
                of it was made; other counts than rows, or no such exit; either of the two where the
                engine is compiled, with its own policy.
        """
        exit_loop.check_evaluating(self.original)
        rows = exit_loop.num_rows(args, inputs)
        model = self.model_for(rows)
        self._check_unchanged(model)
        decide, state = self._decide_by(model), {}
        if policy is not None or max_exit is not None:
            self._check_uncompiled()
            own = of_rows(model, rows, self.policy if policy is None else policy)
            decide, state = by_row(model, own, max_exit)
        answer = exit_loop.empty_prediction(
            model.answer_shape(args, inputs), next(model.parameters())
        )
        if rows:
            named = {**dict(enumerate(args)), **inputs}
            group = self._first_group(model, named, torch.arange(rows), state)
            exit_loop.run(group, decide, self._batch_size, answer)
        return answer

    def stream(
        self,
        data: Dataset[Any] | Iterable[Any],
        batch_size: int = 32,
        window: int = 8,
        *,
        policy: streaming.Policies | None = None,
    ) -> Iterator[Prediction]:
        """Answer batch after batch, in order; inside, rows of different batches go together.

        Rows of `window` batches are sorted by length, and rows that wait at the same exit are put
        together until they fill a batch, so that deep stages run full too. All answers of a window
        come before more is read.

        Where a batch can't be answered, or the source fails, the answers of all batches before
        come first. Rows and batches are then named as counted from 0 over the whole stream.

        Args:
            data: a data set, or an iterable of batches with or without labels, of any sizes.
            batch_size: rows that go through a segment together.
            window: batches read ahead, at most. What has no length, such as a generator, may stall:
                it is read in a thread of its own, and when nothing more comes for 0.05 s, what has
                come is answered. With 1 each batch is answered by itself.
            policy: for this stream, one for all rows; or an iterable that gives for each batch what
                `predict` takes: one, one for each of its rows, or None.

        Raises:
            ValueError: at once: sizes that are no whole numbers from 1, train mode, a single batch
                in place of batches, a policy that doesn't fit the model, any where the engine is
                compiled. While reading: what `predict` raises, with the batch named; more or fewer
                policies than batches.
        """
        check_whole("batch_size", batch_size)
        check_whole("window", window)
        if policy is not None:
            self._check_uncompiled()
        streaming.check(self.original, data, policy)
        self._check_ready()
        batch_size, window = int(batch_size), int(window)
        source = streaming.read(self.original, data, batch_size, window, policy, self.policy)
        return self._stream(source, batch_size)

    def _stream(self, source: Iterable[Window], batch_size: int) -> Iterator[Prediction]:
        before = streaming.Place(0, 0)
        for batches, failed in source:
            self._check_ready()
            try:
                answers = iter(self._window_answers(batches, batch_size))
            except Exception:  # all that can be answered comes first
                answers = (self._window_answers([batch], batch_size)[0] for batch in batches)
            for _ in batches:
                with streaming.placed(before):
                    answer = next(answers)
                yield answer
                before = streaming.Place(before.batch + 1, before.row + len(answer.exit_B))
            if failed is not None:
                raise failed

    @torch.inference_mode()
    def _window_answers(self, batches: list[streaming.Batch], batch_size: int) -> list[Prediction]:
        """Answers of some batches, whose rows are regrouped."""
        inputs = [batch.inputs for batch in batches]
        sizes = [exit_loop.num_rows((), each) for each in inputs]
        shapes = [self.model.answer_shape((), each) for each in inputs]
        own = [policy for batch in batches for policy in batch.own or ()]
        decide, state = by_row(self.model, own) if own else (self._decide_by(self.model), {})
        answer = exit_loop.empty_prediction(
            (sum(sizes), *(max(lengths) for lengths in zip(*(s[1:] for s in shapes), strict=True))),
            next(self.model.parameters()),
        )
        waiting = Waiting(self.model.num_exits, batch_size, exit_loop.shape_key, exit_loop.merge)
        for part, rows_B in streaming.by_length(inputs, sizes, batch_size):
            waiting.add(self._first_group(self.model, part, rows_B, state))
            while (group := waiting.full()) is not None:
                self._advance(group, decide, answer, waiting)
        while (group := waiting.any()) is not None:
            self._advance(group, decide, answer, waiting)
        parts = zip(*(part.split(sizes) for part in answer), shapes, strict=True)
        return [
            Prediction(logits_BC[:, : shape[1]], exit_B)  # of tokens, as many as its batch has
            for logits_BC, exit_B, shape in parts
        ]

    def _check_ready(self) -> None:
        exit_loop.check_evaluating(self.original)
        self._check_unchanged(self.model)

    def _check_unchanged(self, model: MultiExitModel) -> None:
        """Refuse to run a copy of what has changed since, by a ValueError."""
        if model is not self.original and not self._is_unchanged():
            raise ValueError(
                "the model has changed since this engine was made, and the engine runs a copy: "
                "make a new Engine"
            )

    def _check_uncompiled(self) -> None:
        """Refuse other policies than the one that was compiled, by a ValueError."""
        if self.compiled:
            raise ValueError("a compiled engine keeps its policy: make one without compile")

    def _advance(
        self,
        group: exit_loop.Group,
        decide: exit_loop.Decide,
        answer: Prediction,
        waiting: Waiting[exit_loop.Group],
    ) -> None:
        if self.compiled and len(group.rows_B) != _power_of_two(group.running):  # merged
            group = exit_loop.resize(group, _power_of_two(group.running))
        finished, after = exit_loop.advance(group, decide, self._batch_size)
        exit_loop.write_answers(answer, finished)
        if after is not None:
            waiting.add(after)

    def _first_group(
        self, model: MultiExitModel, inputs: dict[Any, Any], rows_B: Tensor, state: policies.State
    ) -> exit_loop.Group:
        """Rows before their first exit: padding cut, on the device, in a size that is compiled."""
        rows = len(rows_B)
        if not self.compiled:
            inputs = padding.trim(inputs)
        else:
            inputs = padding.trim(inputs, LENGTH_STEP, model.backbone.limits()[1])
            filled_B = torch.arange(_power_of_two(rows)).clamp(max=rows - 1)
            inputs, rows_B = padding.rows_of(inputs, filled_B, rows), rows_B[filled_B]
        device = next(model.parameters()).device
        carry = streaming.start(model, inputs, device)
        group = exit_loop.first_group(carry, rows_B.to(device), rows)
        group.state = select(state, group.rows_B)
        return group

    def _batch_size(self, group: exit_loop.Group) -> int:
        """The number of rows to go on with behind an exit (`exit_loop.BatchSize`).

        Rows that stopped leave as soon as dragging them along, the next stages included, would
        have cost more time than it takes to drop them.
        """
        rows, running = len(group.rows_B), group.running
        size = _power_of_two(running) if self.compiled else running
        if self.latency is None or size >= rows:
            return size
        stages, at = self.latency.stages_ms[group.exit], self.latency.at
        group.wasted += at(stages, rows) - at(stages, size)
        return size if group.wasted > at(self.latency.drop_ms, size) else rows


def _usable_latency(model: MultiExitModel, latency: Latency | None) -> Latency | None:
    """The table given, or the model's own if it was measured here."""
    if latency is not None:
        check_latency(model, model.num_exits, latency)
        return latency
    if model.latency is None:
        return None
    try:
        check_latency(model, model.num_exits, model.latency)
    except ValueError as error:
        warnings.warn(f"{error}; it isn't used", stacklevel=user_level())
        return None
    return model.latency


def _power_of_two(rows: int) -> int:
    """The next power of two."""
    return 1 << (rows - 1).bit_length()
