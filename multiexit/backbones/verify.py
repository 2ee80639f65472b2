"""Whether a backbone answers as the network does that it was made of, and each row by itself.

Letters: B batch rows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from multiexit.backbones.running import has_forward, random_rows, run
from multiexit.runtime import evaluating


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
    if not has_forward(model):
        return
    with evaluating(backbone, model, *([] if head is None else [head])), torch.no_grad():
        feature = backbone.last_feature(x)
        if head is not None:
            answer = run(model, x)
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
        last_hidden = run(encoder, **x)[0]
        feature = backbone.last_feature(**x)
        gap = mismatch(feature, last_hidden)
        if not gap and head is not None:
            ours, theirs = head(feature), run(model, **x)[0]
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
        check_same_rows(what, both, each)


def check_same_rows(what: str, together: Tensor, alone: Sequence[Tensor]) -> None:
    """Refuse what isn't the same for rows of one batch and for each row alone.

    Args:
        what: it is, for the message.
        together, alone: of all rows, and of each.

    Raises:
        ValueError: with the largest difference.
    """
    gap = mismatch(together, torch.cat([*alone]), _rounding(together))
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
