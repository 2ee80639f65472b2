"""Any network whose trunk is a chain of layers: its own forward, taken apart.

Letters: B batch rows, T tokens, H width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from multiexit.backbones.base import Backbone, Carry
from multiexit.backbones.layers import plans
from multiexit.backbones.layers import shell as shells
from multiexit.backbones.layers.forward_calls import LayerChain
from multiexit.backbones.layers.plans import GIVES, CallPlan, Kind, Path, mapped, spelt
from multiexit.backbones.layers.shell import Given, Made
from multiexit.backbones.running import like_parameters


class RecordedBackbone(Backbone):
    """Stages are a network's own layers, called as its own forward calls them.

    `start` runs the forward with layers that write down what they are given, which costs
    embeddings and masks alone; stage i then runs the layers, and the feature is
    `f_i = norm(x_{i+1})`, where norm is what the network applies behind its last layer.

    The submodules are shared with the network, not copied.

    Args:
        shell: the network with recorders in place of its layers (`shell.make_shell`).
        layers: the layers, in order.
        chain: which of them end a stage.
        kinds: by path of an argument.
        norm: what comes behind the last layer, and belongs to each feature.
        example: inputs of one row, by name.
        turned: the two dimensions that layers have in the other order than features, such as
            (0, 1) where layers take [T, B, H]; None where they take what features are.
        facts: as `Backbone` takes them.
    """

    def __init__(
        self,
        shell: nn.Module,
        layers: Sequence[nn.Module],
        chain: LayerChain,
        kinds: Mapping[Path, Kind],
        norm: nn.Module | None,
        example: Mapping[str, Tensor],
        turned: tuple[int, int] | None = None,
        **facts: Any,
    ):
        super().__init__(**facts)
        self.shell = shell
        self.layers = nn.ModuleList(layers)
        self.chain = chain
        self.norm = nn.Identity() if norm is None else norm
        self._turned = turned
        self._kinds = dict(kinds)
        self._example = dict(example)

    def begin(self, inputs: Mapping[str, Any]) -> Carry:
        """The carry before the first layer, from inputs by name."""
        given = shells.record(self.shell, inputs)
        x = self.turned(given[0].x)
        rows, plan = self._planned(given, len(x))
        return {"x": x, "rows": rows, "plan": plan}

    def turned(self, x: Tensor) -> Tensor:
        """What a layer takes or gives as a feature, and the other way round."""
        return x if self._turned is None else x.transpose(*self._turned)

    def _planned(self, given: Sequence[Given], B: int) -> tuple[dict[str, Tensor], CallPlan]:
        """The rows' tensors by name, and the plan with their stand-ins."""
        rows: dict[str, Tensor] = {}
        names: dict[int, str] = {}

        def stand_in(path: Path, leaf: Tensor | Made) -> Any:
            if isinstance(leaf, Made):
                path = (leaf.layer, GIVES, leaf.place)
            kind = self._kind(path, leaf, B)
            if isinstance(leaf, Made):
                return plans.stand_in(kind, spelt(path))
            if kind == "fixed":
                return leaf
            name = names.setdefault(id(leaf), spelt(path))
            if name not in rows:
                rows[name] = plans.by_row(leaf, kind, B)
            return plans.stand_in(kind, name)

        calls = {
            call.layer: (call.place, *mapped((call.args, call.kwargs), stand_in, (call.layer,)))
            for call in given
        }
        return rows, CallPlan(calls)

    def _kind(self, path: Path, leaf: Tensor | Made, B: int) -> Kind:
        if path in self._kinds:
            return self._kinds[path]
        if self._turned is not None:  # a mask's rows may be any of its dimensions
            raise plans.new_argument(path)
        return plans.kind_of_mask(path, leaf, B)

    def stage(self, carry: Carry, index: int) -> tuple[Carry, Tensor]:
        x, rows, plan = carry["x"], dict(carry["rows"]), carry["plan"]
        first = self.chain.ends[index - 1] + 1 if index else 0
        called = [p for p in range(first, self.chain.ends[index] + 1) if p in plan.calls]
        for place in called:
            result = self._run(place, self.turned(x), rows, plan)
            x = self.turned(shells.feature_of(result))
            self._keep(place, result, rows, len(x))
        return {**carry, "x": x, "rows": rows}, self.norm(x)

    def _run(self, place: int, x: Tensor, rows: Mapping[str, Tensor], plan: CallPlan) -> Any:
        """A layer's result."""
        at, args, kwargs = plans.filled(plan.calls[place], rows)
        if isinstance(at, str):
            return self.layers[place](*args, **{**kwargs, at: x})
        return self.layers[place](*args[:at], x, *args[at + 1 :], **kwargs)

    def _keep(self, place: int, result: Any, rows: dict[str, Tensor], B: int) -> None:
        """Keep what later layers are called with of what this one gave."""
        for path, kind in self._kinds.items():
            if path[:2] == (place, GIVES):
                tensor = shells.result_at(result, path[2])
                rows[spelt(path)] = plans.by_row(tensor, kind, B)

    def stage_module(self, index: int) -> nn.Module:
        first = self.chain.ends[index - 1] + 1 if index else 0
        last = self.chain.ends[index]
        return self.layers[last] if first == last else self.layers[first : last + 1]

    def example_inputs(self, batch: int = 1) -> dict[str, Tensor]:
        return {
            name: like_parameters(tensor, self).expand(batch, *tensor.shape[1:])
            for name, tensor in self._example.items()
        }
