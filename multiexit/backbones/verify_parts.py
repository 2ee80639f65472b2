"""Whether a chain of parts computes what the network's own forward does.

What a forward does between its parts (functional pools, residual sums, permutations, parameters
that belong to no part) can't be seen in the parts: it is found by running both.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from multiexit.backbones.running import has_forward, random_rows, run
from multiexit.backbones.verify import mismatch
from multiexit.runtime import evaluating, modes_kept

Part = tuple[str, nn.Module]


class _PartCall(NamedTuple):
    """One call of a part: which it was, what it read and what it gave, as they were then."""

    part: nn.Module
    input: Any
    output: Any
    node: Any  # of the graph for gradients


def check_parts(
    module: nn.Module, parts: Sequence[Part], example: Tensor, whole: bool = False
) -> None:
    """Refuse parts that, run one after another, aren't what the module's own forward runs.

    Each part's input and output in the module's own forward are compared with those in the chain,
    in evaluation mode, on random rows, for two batch sizes; and on rows with zeros, which a forward
    may take for padding, and with large numbers, which it may clip.

    Args:
        module: the network.
        parts: names and modules, in the order of the chain; the stem's come first.
        example: one input row.
        whole: whether the last part gives the network's answer.

    Raises:
        ValueError: names the first part where they differ and by how much; parameters that the
            forward uses before the last part, outside of all parts; dropout left out there.
    """
    if not has_forward(module):
        return
    with evaluating(module):
        for x in _trials(module, example):
            calls, answer = _record_calls(module, parts, x)
            with torch.no_grad():
                last = _compare(module, parts, calls, x)
            if whole and (gap := mismatch(last, answer)):
                raise ValueError(
                    f"{type(module).__name__}'s forward doesn't give what {parts[-1][0]!r} gives "
                    f"as it is: {gap}. Something is done behind it (by a hook, or a forward of its "
                    "own): make it a layer of the sequence, or write an adapter"
                )
        _check_outside(module, parts, random_rows(example, module, 2))


def part_names(module: nn.Module, parts: Iterable[str | nn.Module]) -> list[str]:
    """The names of parts for messages: those that they have in the module, or their classes."""
    names = {id(m): name for name, m in module.named_modules(remove_duplicate=False)}
    return [
        part if isinstance(part, str) else names.get(id(part), type(part).__name__)
        for part in parts
    ]


def _trials(module: nn.Module, example: Tensor) -> Iterator[Tensor]:
    """Rows to compare on: two, one, some with zeros in places, one of large numbers."""
    for rows in (2, 1):
        yield random_rows(example, module, rows)
    x = random_rows(example, module, 2 + example.ndim)
    x[0] = 0
    for dim in range(1, example.ndim):
        x[dim].narrow(dim - 1, example.shape[dim] // 2, -(-example.shape[dim] // 2)).zero_()
    yield x
    if example.is_floating_point():
        yield 100 * random_rows(example, module, 1)


def _record_calls(
    module: nn.Module, parts: Sequence[Part], x: Tensor
) -> tuple[list[_PartCall], Any]:
    """All calls of the parts in one run of the module's own forward, and its answer."""
    calls: list[_PartCall] = []
    inputs: dict[int, list[Any]] = {}

    def before(part: nn.Module, args: Any, kwargs: Any) -> None:
        inputs.setdefault(id(part), []).append(_snapshot(args[0]) if args else None)

    def after(part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        node = output.grad_fn if isinstance(output, Tensor) else None
        calls.append(_PartCall(part, inputs[id(part)].pop(), _snapshot(output), node))

    hooks = []
    for part in {id(part): part for _, part in parts}.values():
        hooks.append(part.register_forward_pre_hook(before, with_kwargs=True))
        hooks.append(part.register_forward_hook(after, with_kwargs=True))
    try:
        answer = run(module, x)
    finally:
        for hook in hooks:
            hook.remove()
    return calls, answer


def _snapshot(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else None


def _compare(
    module: nn.Module, parts: Sequence[Part], calls: Sequence[_PartCall], x: Tensor
) -> Tensor:
    """What the chain gives, if each part in it reads and gives what it does in the network."""
    position, before = 0, "the network's input"
    kind = type(module).__name__
    for name, part in parts:
        places = [i for i in range(position, len(calls)) if calls[i].part is part]
        if not places:
            ran = any(call.part is part for call in calls)
            raise ValueError(
                f"{kind}'s forward runs {name!r} before {before}: name the parts in the order in "
                "which they run"
                if ran
                else f"{kind}'s forward doesn't run {name!r} after {before}, so it is no part of it"
            )
        call = calls[places[0]]
        position = places[0] + 1
        gap = mismatch(x, call.input)
        if gap:
            raise ValueError(
                f"{kind}'s forward doesn't hand {before} on to {name!r} as it is: {gap}. Something "
                "is done between them (a function, a sum, a permutation, a part that isn't named): "
                "name a module that does it, in stem= or stages=, or write an adapter"
            )
        output = part(x.clone())
        gap = mismatch(output, call.output)
        if gap:
            raise ValueError(
                f"{name!r} gives something else by itself than in {kind}'s forward: {gap}. Is it "
                "called there with more than one tensor? Then write an adapter"
            )
        x, before = output, f"{name!r}"
    return x


def _check_outside(module: nn.Module, parts: Sequence[Part], x: Tensor) -> None:
    """Refuse parameters, and modules that act in training only, used outside of all parts."""
    inside = {id(m) for _, part in parts for m in part.modules()}
    part_parameters = {id(p) for _, part in parts for p in part.parameters()}
    left_out: list[str] = []
    ended: list[bool] = []

    def note(name: str) -> None:
        if not ended:
            left_out.append(name)

    hooks = [
        m.register_forward_hook(lambda *_, name=name: note(name))
        for name, m in module.named_modules()
        if id(m) not in inside and _acts_in_training(m)
    ]
    last = parts[-1][1]
    hooks.append(last.register_forward_hook(lambda *_: ended.append(True)))
    try:
        with modes_kept(module), torch.enable_grad():
            for p in module.parameters():
                p.requires_grad_(p.is_floating_point())
            calls, _ = _record_calls(module, parts, x)
    finally:
        for hook in hooks:
            hook.remove()
    final = [call for call in calls if call.part is last][-1]
    used = _variables(final.node)
    outside = [
        n for n, p in module.named_parameters() if id(p) in used and id(p) not in part_parameters
    ]
    if outside:
        raise ValueError(
            f"{type(module).__name__}'s forward uses {outside[:5]} before the end of "
            f"{parts[-1][0]!r}, and no part named in stem= or stages= has them: name the modules "
            "that do, or write an adapter"
        )
    if left_out:
        raise ValueError(
            f"{type(module).__name__}'s forward runs {left_out[:5]}, which act in training, before "
            f"the end of {parts[-1][0]!r}: name them too, in stem= or stages="
        )


def _acts_in_training(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return module.track_running_stats
    return bool(getattr(module, "drop_prob", 0)) and not list(module.children())


def _variables(node: Any) -> set[int]:
    """Ids of the parameters that a node of the graph for gradients comes from."""
    ids, visited = set(), set()
    queue: list[Any] = [node]
    while queue:
        node = queue.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            ids.add(id(node.variable))
        queue += [successor for successor, _ in node.next_functions]
    return ids
