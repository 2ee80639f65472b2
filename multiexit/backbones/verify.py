"""Whether a chain of parts computes what the network's own forward does.

What a forward does between its parts (functional pools, residual sums, permutations, parameters
that belong to no part) can't be seen in the parts: it is found by running both.

Letters: B batch rows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multiexit.backbones.running import random_rows
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
    if not _has_forward(module):
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


def check_rows(
    features: Callable[[Tensor], list[Tensor]],
    module: nn.Module,
    example: Tensor,
    head: nn.Module | None = None,
) -> None:
    """Refuse a network in which what a row gives depends on the other rows of its batch.

    Args:
        features: from rows to each stage's feature.
        module: the network, for its device, precision and modes.
        example: one input row.
        head: the network's own, on the last feature.

    Raises:
        ValueError: names the first stage where it does, or the head.
    """
    x = random_rows(example, module, 2)
    heads = [] if head is None else [head]
    with evaluating(module, *heads), torch.no_grad():
        together, *alone = (
            [*made, *(head(made[-1]) for head in heads)] for made in map(features, (x, *x.split(1)))
        )
    whose = [f"stage {stage}: a row's feature" for stage in range(len(together) - len(heads))]
    whose += ["its own head: a row's answer" for _ in heads]
    for what, both, *each in zip(whose, together, *alone, strict=True):
        gap = mismatch(both, torch.cat(each), _rounding(both))
        if gap:
            raise ValueError(
                f"{what} depends on the other rows of its batch ({gap}); exits need each row to be "
                "worked out by itself: is the batch the first dimension everywhere "
                "(batch_first=True), does every batch norm keep statistics, and is the batch's "
                "size (x.size(0)) used for shapes alone?"
            )


def _is_as_made(model: nn.Module) -> bool:
    """Whether all parts are torch's own layers or of the library whose network this is.

    These are known to work each row out by itself, unless a batch norm keeps no statistics; layers
    that the user put there are not.
    """
    library = type(model).__module__.partition(".")[0]
    libraries = {"transformers", "timm", "torchvision"} & {library}
    for part in model.modules():
        where = type(part).__module__
        known = where.startswith("torch.nn.modules.") or where.partition(".")[0] in libraries
        if not known or (isinstance(part, _BatchNorm) and part.running_mean is None):
            return False
    return True


def _rounding(x: Tensor) -> float:
    """How far rows may be from what they are in another batch, by the order of sums alone."""
    if x.element_size() < 4:
        return 5e-2
    return 2e-4 if x.is_cpu else 1e-2  # other devices round products (TF32)


def check_answers(
    backbone: Any,
    model: nn.Module,
    trunk: Callable[[Tensor], Tensor] | None = None,
    tolerance: float | None = None,
) -> None:
    """Refuse a staged network whose own head, or last feature, isn't what the network gives.

    Args:
        backbone: the network in stages, with its own head if it has one.
        model: the network.
        trunk: gives its last feature, to compare where there is no head.
        tolerance: of the largest value; None is a few roundings.

    Raises:
        ValueError: with the largest difference.
    """
    (example,) = backbone.example_inputs().values()
    x = random_rows(example, model, 1)
    head = backbone.classifier
    if not _has_forward(model):
        return
    with evaluating(backbone, model, *([] if head is None else [head])), torch.no_grad():
        feature = backbone.last_feature(x)
        if head is not None:
            answer = _run(model, x)
            ours, theirs = head(feature), getattr(answer, "logits", answer)
            head.num_classes = ours.shape[-1]
        elif trunk is not None:
            ours, theirs = feature, trunk(x)
        else:
            return
    gap = mismatch(ours, theirs, tolerance)
    if gap:
        raise ValueError(
            f"{type(model).__name__}'s own forward isn't its stages and head one after another: "
            f"{gap}. Is it changed, or of a class with a forward of its own? Then name its parts, "
            "and those of its head in classifier=, such as ['avgpool', 'fc'], or write an adapter"
        )
    if not _is_as_made(model):
        check_rows(backbone.features, backbone, example, head)


def check_text(backbone: Any, model: Any) -> None:
    """Refuse a staged encoder whose last feature, or own head, isn't what the network gives.

    Args:
        backbone: the encoder in stages, with its own head if it has one.
        model: of transformers.

    Raises:
        ValueError: with the largest difference.
    """
    head, encoder = backbone.classifier, model.base_model
    x = {key: rows.expand(2, -1) for key, rows in backbone.example_inputs(1, 8).items()}
    x["input_ids"] = random_rows(x["input_ids"], backbone, 2)
    with evaluating(model), torch.no_grad():
        last_hidden = _run(encoder, **x)[0]
        feature = backbone.last_feature(**x)
        gap = mismatch(feature, last_hidden)
        if not gap and head is not None:
            ours, theirs = head(feature), _run(model, **x)[0]
            gap = mismatch(ours, theirs)
            if ours.shape[-1] != head.num_classes:  # a head that was put there
                head.num_classes, head.labels = ours.shape[-1], None
    if gap:
        raise ValueError(
            f"{type(model).__name__}'s own forward isn't its layers and head one after another: "
            f"{gap}. Is it changed, or of a class with a forward of its own? Then register an "
            "adapter: @multiexit.wrap.register(YourClass)"
        )

    def features(ids_BT: Tensor) -> list[Tensor]:
        return backbone.features(input_ids=ids_BT)

    if not _is_as_made(model):
        check_rows(features, backbone, x["input_ids"][:1], head)


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


def _has_forward(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


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
        answer = _run(module, x)
    finally:
        for hook in hooks:
            hook.remove()
    return calls, answer


def _snapshot(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else None


def _run(module: nn.Module, *args: Tensor, **inputs: Tensor) -> Any:
    try:
        return module(*args, **inputs)
    except Exception as error:  # whatever a network says to an input that it doesn't take
        shape = tuple(next(iter((*args, *inputs.values()))).shape)
        raise ValueError(
            f"{type(module).__name__} doesn't run on an input of shape {shape}, so it "
            f"can't be compared with its parts: {error}. Pass input_shape=, the shape of one row "
            "that it takes; a network that takes more than one tensor needs an adapter of its own"
        ) from error


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


def mismatch(ours: Any, theirs: Any, tolerance: float | None = None) -> str:
    """The difference of two tensors, in words; empty where they are equal up to rounding."""
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        return "" if ours is theirs else "one is no tensor"
    if ours.shape != theirs.shape:
        return f"shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
    if not ours.is_floating_point():
        return "" if torch.equal(ours, theirs) else "other values"
    equal = (ours == theirs) | (ours.isnan() & theirs.isnan())
    largest = (ours - theirs).masked_fill(equal, 0).abs().max().item() if ours.numel() else 0.0
    size = theirs.abs().max().item() if ours.numel() else 0.0
    limit = 8 * torch.finfo(ours.dtype).eps if tolerance is None else tolerance
    return (
        ""
        if largest == 0 or largest <= limit * size
        else f"largest difference {largest:.3g} of {size:.3g}"
    )


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


def part_names(module: nn.Module, parts: Iterable[str | nn.Module]) -> list[str]:
    """The names of parts for messages: those that they have in the module, or their classes."""
    names = {id(m): name for name, m in module.named_modules(remove_duplicate=False)}
    return [
        part if isinstance(part, str) else names.get(id(part), type(part).__name__)
        for part in parts
    ]
