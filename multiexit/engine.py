"""Fast prediction: batches that shrink when it pays, and fill up again.

Letters: M exits, B batch rows, T tokens, C classes.
"""

import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from multiexit import padding, walk
from multiexit.compiling import compiled
from multiexit.data.batches import in_order, move, unpack_inputs
from multiexit.folding import for_inference
from multiexit.latency import Latency, check_here
from multiexit.model import MultiExitModel, Prediction
from multiexit.policies import ExitPolicy

STEP = 16  # compiled engines see lengths of so many tokens apart


class Engine:
    """Predicts with a trained model as fast as it can; answers are those of `model.predict`.

    Columns of padding that all rows share are cut. Rows that stopped leave the batch where that
    pays: at once, or with a latency table as soon as dragging them along would have cost more.
    Convolutional models run as a copy with their batch norms folded (`multiexit.folding`): make a
    new engine after they have learnt more.

    Args:
        model: in evaluation mode.
        policy: by default the model's own.
        latency: from `multiexit.profile`; by default the model's own, if it was made here.
        compile: compile each segment (its stages, head and the policy) with `torch.compile`;
            or the mode to do it in, such as `"reduce-overhead"` for CUDA graphs. Batches are then
            filled up to powers of two, and text to multiples of 16 tokens, so that shapes are few.

    Raises:
        ValueError: no policy, train mode, or a latency table of another machine or other exits.

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
        walk.check_evaluating(model)
        self._given, self._mark = model, _mark(model)
        self.model = model = for_inference(model)
        self.policy = policy
        self.latency = _usable(model, latency)
        self.compiled = bool(compile)
        self._look: walk.Looker = partial(walk.look, model, policy)
        if compile:
            mode = compile if isinstance(compile, str) else None
            graphs = 64 * model.num_exits  # for each exit, batch size and length
            self._look = compiled(self._look, graphs, mode=mode, dynamic=False)

    @torch.inference_mode()
    def predict(self, *args: Any, **inputs: Any) -> Prediction:
        """One batch; see `MultiExitModel.predict`."""
        self._check()
        rows = walk.num_rows(args, inputs)
        answer = walk.blank(self.model, rows)
        if rows:
            group = self._begin({**dict(enumerate(args)), **inputs}, torch.arange(rows))
            walk.run(group, self._look, self._fit, answer)
        return answer

    def stream(
        self, data: Dataset[Any] | Iterable[Any], batch_size: int = 32, window: int = 8
    ) -> Iterator[Prediction]:
        """Answers for batch after batch, in order; inside, rows of different batches go together.

        Rows of `window` batches are sorted by length, and rows that wait at the same exit are put
        together until they fill a batch, so that deep stages run full too. Answers come when the
        whole window is done.

        Args:
            data: a data set, or an iterable of batches with or without labels, of any sizes.
            batch_size: rows that go through a segment together.
            window: batches read ahead.
        """
        for name, value in (("batch_size", batch_size), ("window", window)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        ahead: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        for batch in in_order(data, batch_size):
            ahead.append(unpack_inputs(batch))
            if len(ahead) == window:
                yield from self._window(ahead, batch_size)
                ahead = []
        if ahead:
            yield from self._window(ahead, batch_size)

    @torch.inference_mode()
    def _window(self, batches: list[Any], batch_size: int) -> Iterator[Prediction]:
        """Answers of some batches, whose rows are regrouped."""
        self._check()
        sizes = [walk.num_rows(args, inputs) for args, inputs in batches]
        named = [{**dict(enumerate(args)), **inputs} for args, inputs in batches]
        inputs = padding.join(named, sizes)
        rows = sum(sizes)
        length_B = padding.lengths(inputs)
        order_B = torch.arange(rows) if length_B is None else length_B.cpu().argsort(stable=True)
        answer = walk.blank(self.model, rows)
        waiting = Waiting(self.model.num_exits, batch_size)
        for some_B in order_B.flip(0).split(batch_size):
            chosen = padding.rows_of(inputs, some_B, rows)
            waiting.add(self._begin(chosen, some_B))
            while (group := waiting.full()) is not None:
                self._step(group, answer, waiting)
        while (group := waiting.any()) is not None:
            self._step(group, answer, waiting)
        for logits_BC, exit_B in zip(*(part.split(sizes) for part in answer), strict=True):
            yield Prediction(logits_BC, exit_B)

    def _check(self) -> None:
        walk.check_evaluating(self._given)
        if self.model is not self._given and _mark(self._given) != self._mark:
            raise ValueError(
                "the model has changed since this engine was made, and the engine runs a copy: "
                "make a new Engine"
            )

    def _step(self, group: walk.Group, answer: Prediction, waiting: "Waiting") -> None:
        if self.compiled and len(group.rows_B) != _bucket(group.here):  # merged
            group = walk.take(group, _bucket(group.here))
        left, after = walk.advance(group, self._look, self._fit)
        walk.put(answer, left)
        if after is not None:
            waiting.add(after)

    def _begin(self, inputs: dict[Any, Any], rows_B: Tensor) -> walk.Group:
        """Rows before their first exit: padding cut, on the device, in a size that is compiled."""
        rows = len(rows_B)
        inputs = padding.trim(inputs, STEP if self.compiled else 1)
        if self.compiled:
            filled_B = torch.arange(_bucket(rows)).clamp(max=rows - 1)
            inputs, rows_B = padding.rows_of(inputs, filled_B, rows), rows_B[filled_B]
        device = next(self.model.parameters()).device
        moved = move(inputs, device)
        args = [moved[place] for place in sorted(k for k in moved if isinstance(k, int))]
        named = {name: value for name, value in moved.items() if isinstance(name, str)}
        return walk.begin(self.model.backbone.start(*args, **named), rows_B.to(device), rows)

    def _fit(self, group: walk.Group) -> int:
        """With how many rows to go on behind an exit (`walk.Fit`).

        Rows that stopped leave as soon as dragging them along, the next stages included, would
        have cost more time than it takes to drop them.
        """
        rows, size = len(group.rows_B), _bucket(group.here) if self.compiled else group.here
        if self.latency is None or size >= rows:
            return size
        stages, at = self.latency.stages_ms[group.exit], self.latency.at
        group.wasted += at(stages, rows) - at(stages, size)
        return size if group.wasted > at(self.latency.drop_ms, size) else rows


class Waiting:
    """Groups that wait at exits until they fill a batch.

    Args:
        num_exits: M.
        batch_size: rows that make a full one.
    """

    def __init__(self, num_exits: int, batch_size: int):
        self.batch_size = batch_size
        self.groups: list[dict[Any, list[walk.Group]]] = [{} for _ in range(num_exits)]

    def add(self, group: walk.Group) -> None:
        """Let a group wait with those it can be merged with."""
        self.groups[group.exit].setdefault(walk.kind(group), []).append(group)

    def full(self) -> walk.Group | None:
        """The deepest rows that fill a batch, or None."""
        for here in reversed(self.groups):
            for kind, groups in here.items():
                if sum(group.here for group in groups) >= self.batch_size:
                    return _merged(here.pop(kind))
        return None

    def any(self) -> walk.Group | None:
        """The shallowest rows, so that they meet those that wait deeper; None if there are none."""
        for here in self.groups:
            for kind in here:
                return _merged(here.pop(kind))
        return None


def _merged(groups: list[walk.Group]) -> walk.Group:
    return groups[0] if len(groups) == 1 else walk.merge(groups)


def _mark(model: MultiExitModel) -> Any:
    """Something that is another after training, loading, calibrating or moving a model."""
    weight = next(model.parameters())
    counted = [t for t in (weight, model.temperature_M) if not t.is_inference()]
    return weight.device, weight.dtype, [(id(t), t._version) for t in counted]


def _usable(model: MultiExitModel, latency: Latency | None) -> Latency | None:
    """The table given, or the model's own if it was measured here."""
    if latency is not None:
        check_here(model, latency)
        return latency
    if model.latency is None:
        return None
    try:
        check_here(model, model.latency)
    except ValueError as error:
        warnings.warn(f"{error}; it isn't used", stacklevel=3)
        return None
    return model.latency


def _bucket(rows: int) -> int:
    """The next power of two."""
    return 1 << (rows - 1).bit_length()
