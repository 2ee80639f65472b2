"""Anything becomes a backbone: names, models of the libraries, and a user's own modules."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import singledispatch, wraps
from inspect import signature
from itertools import takewhile
from typing import Any, TypeVar

import torch
from torch import nn

from multiexit.backbones import adapters
from multiexit.backbones.base import Backbone
from multiexit.backbones.classifier import classifier_spec, user_classifier
from multiexit.backbones.graphs import cuts
from multiexit.backbones.kinds import KINDS, like
from multiexit.backbones.one_input import needed_inputs
from multiexit.backbones.rebuilding import rebuild
from multiexit.backbones.running import check_weights
from multiexit.backbones.same import rebuild_difference
from multiexit.backbones.sequential import from_parts, sizes
from multiexit.backbones.verify import check_answers, check_text
from multiexit.files.unreadable import reason
from multiexit.runtime import buffers_kept
from multiexit_runner.user_line import user_level

Wrap = TypeVar("Wrap", bound=Callable[..., Backbone])


def _checked(wrap: Wrap) -> Wrap:
    """The function, refusing what the adapter of a module's class doesn't take."""

    @wraps(wrap)  # and its `register`
    def checked(module: Any, **options: Any) -> Backbone:
        adapter = wrap.dispatch(type(module))  # type: ignore[attr-defined]
        try:
            takes = signature(adapter).parameters.values()
        except ValueError:  # of a function in C
            return wrap(module, **options)
        names = [p.name for p in takes if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)][1:]
        if not any(p.kind is p.VAR_KEYWORD for p in takes):
            for name in options:
                if name not in names:
                    raise ValueError(
                        f"wrapping this {type(module).__name__} takes no {name}=, but "
                        f"{', '.join(names) or 'nothing beside it'}"
                    )
        return wrap(module, **options)

    return checked  # type: ignore[return-value]


@_checked
@singledispatch
def wrap(
    module: Any,
    *,
    stages: Sequence[str | nn.Module] = (),
    stem: Sequence[str | nn.Module] = (),
    input_shape: tuple[int, ...] | None = None,
    layout: str | Sequence[str] | None = None,
    classifier: str | nn.Module | Sequence[str | nn.Module] | None = None,
    **kwargs: Any,
) -> Backbone:
    """Cut a network into stages, each of which may have an exit.

    Args:
        module: a name or an instance. Names: a transformers hub name or local folder,
            `"cifar-resnet-56"`, `"timm:vit_small_patch16_224"`, `"torchvision:resnet50"`.
            Instances: encoders and decoders of transformers; networks of timm and torchvision that
            classify images; `nn.Sequential` (each child is a stage); any module that takes one
            tensor, with `input_shape`; any module whose parts you name.
        stages: for other modules, the names (or modules) that run one after another; an exit can
            follow each.
        stem: the names (or modules) that run before them.
        input_shape: shape of one input row, for modules that don't say it or are used at another
            size than theirs, e.g. `(3, 32, 32)`. A module of no library is cut where its blocks
            end. Of texts `(T,)`: rows are filled up to T tokens, for networks of transformers that
            read the padding too; of a network of your own in which an embedding reads the input, T
            whole numbers.
        layout: what the dimensions of the features are, where it can't be told: one of
            `multiexit.backbones.layouts.LAYOUTS` for all stages, or one for each.
        classifier: the network's own head, where it can't be told or another shall be the last
            exit: the name of a part, a module, or a list of these that run one after another. An
            `nn.Linear` by itself reads the pooled feature of the last stage, anything else that
            feature itself; a `NetworkHead` says what it reads. Of the network's own parts it must
            give what the network's forward gives.
        kwargs: for names only, passed to the library that makes the model (`pretrained=True`).

    Returns:
        A `Backbone`. The module's parameters are shared with it, not copied.

    Raises:
        ValueError: what can't be wrapped, with what would work; parts that, one after another,
            aren't what the module's own forward computes, with the first that differs.

    To teach it a class of your own:
        `@multiexit.wrap.register(YourClass)` on a function that returns a `Backbone`.

    Example:
        >>> from torch import nn
        >>> import multiexit as mx
        >>> backbone = mx.wrap(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        >>> backbone.num_stages, backbone.feature_shapes
        (3, [(8,), (8,), (2,)])
        >>> mx.wrap("cifar-resnet-20").num_stages
        9
    """
    if isinstance(module, type):
        raise ValueError(f"can't wrap {module.__name__}, a class: make one of it, and wrap that")
    if hasattr(module, "model_type"):
        raise ValueError(
            f"can't wrap {type(module).__name__}, which has no weights: make the network, "
            "transformers.AutoModel.from_config(config), and wrap that"
        )
    raise ValueError(f"can't wrap this {type(module).__name__}. {_help()}")


@wrap.register
def _(module: Backbone, *, classifier: nn.Module | None = None) -> Backbone:
    return _with_classifier(module, module, classifier)


@wrap.register
def _(module: str, *, classifier: nn.Module | None = None, **kwargs: Any) -> Backbone:
    backbone = _from_name(module, **kwargs)
    return _with_classifier(backbone, backbone, classifier)


def _with_classifier(backbone: Backbone, module: nn.Module, classifier: Any) -> Backbone:
    """The backbone with a head that the user names or passes."""
    if classifier is not None:
        _check_apart(classifier, backbone, module)
        shape, layout = backbone.feature_shapes[-1], backbone.layouts[-1]
        head = user_classifier(classifier, module, shape, layout, backbone.pool)
        backbone.set_classifier(head)
        parts = {id(part) for part in module.modules()}
        is_part = module is not backbone and all(id(p) in parts for p in head.linear.modules())
        if is_part and head is not classifier:  # a NetworkHead is taken at its word
            if "input_ids" in backbone.example_inputs():
                check_text(backbone, module)
            else:
                check_answers(backbone, module, tolerance=1e-5)
        if not isinstance(classifier_spec(head), dict):
            # A spec can't tell how such a head is made.
            backbone.spec, backbone.undescribed = None, "its own head was passed as classifier="
    return backbone


def _check_apart(classifier: Any, backbone: Backbone, module: nn.Module) -> None:
    """Refuse a head that is a stage too: it would be run on what it gave."""
    stages = [backbone.stage_module(index) for index in range(backbone.num_stages)]
    for part in classifier if isinstance(classifier, list | tuple) else [classifier]:
        head = dict(module.named_modules()).get(part) if isinstance(part, str) else part
        inside = head.modules() if isinstance(head, nn.Module) else []
        if any(layer is stage for layer in inside for stage in stages):
            what = repr(part) if isinstance(part, str) else f"the {type(part).__name__}"
            raise ValueError(f"{what} is a stage and in classifier: leave it out of the stages")


def _from_name(module: str, **kwargs: Any) -> Backbone:
    if "stages" in kwargs or "stem" in kwargs:
        raise ValueError("stages and stem name the parts of a module: make it first, then wrap it")
    for kind in KINDS.values():
        if kind.prefix is not None and module.startswith(kind.prefix):
            return kind.adapter().from_name(module.removeprefix(kind.prefix), **kwargs)
    from multiexit.backbones.transformers import transformer

    try:
        return transformer.from_name(module, **kwargs)
    except ValueError:
        raise
    except Exception as error:  # the library raises all kinds for a damaged folder
        raise no_model(module, error) from error


def no_model(name: str, error: Exception) -> ValueError:
    """The refusal of a name that a library has no network of.

    Args:
        name: as the user gave it.
        error: the library's.
    """
    known = " or ".join(map(repr, like(name)))
    return ValueError(
        f"no model {name!r}: {reason(name, error).rstrip('.')}. "
        + (f"Did you mean {known}? " if known else "")
        + f"What works: {_names()}"
    )


@wrap.register
def _(
    module: nn.Module,
    *,
    stages: Sequence[str | nn.Module] = (),
    stem: Sequence[str | nn.Module] = (),
    input_shape: tuple[int, ...] | None = None,
    layout: str | Sequence[str] | None = None,
    classifier: str | nn.Module | Sequence[str | nn.Module] | None = None,
) -> Backbone:
    if isinstance(module, torch.jit.ScriptModule):
        raise ValueError("a scripted module can't be taken apart: wrap it before scripting it")
    network = adapters.network_of(module)
    if isinstance(network, Backbone):
        return wrap(network, classifier=classifier)
    stages, stem = _as_list(stages, "stages"), _as_list(stem, "stem")
    if isinstance(network, nn.Sequential) and not stages:
        stages = _before(classifier, network)
    with buffers_kept(network), adapters.taken_out(network) as taken:
        backbone = _from_module(network, stages, stem, input_shape, layout)
        backbone = _with_classifier(backbone, network, classifier)
    if next(backbone.parameters(), None) is None:
        raise ValueError(
            f"this {type(network).__name__} has no parameters, so nothing that stages could learn "
            "or save: wrap the network that it belongs to"
        )
    if stages and backbone.classifier is None:
        _warn_of_unread(network, backbone)
    if taken:
        adapters.put_in(backbone, taken)
    return backbone


def _before(classifier: Any, sequence: nn.Sequential) -> list[str | nn.Module]:
    """The children of a sequence in front of those that the user calls its head; else none."""
    head = classifier if isinstance(classifier, list | tuple) else [classifier]
    children = sequence._modules
    parts = [children.get(part) if isinstance(part, str) else part for part in head]
    names = list(takewhile(lambda name: all(children[name] is not p for p in parts), children))
    return [] if len(names) == len(children) else [*names]


def _warn_of_unread(module: nn.Module, backbone: Backbone) -> None:
    """Say which parts lie beside those that the user named; the network's head may be one."""
    read = {id(p) for p in backbone.parameters()}
    left = [
        name for name, part in module.named_children() if {id(p) for p in part.parameters()} - read
    ]
    if left:
        warnings.warn(
            f"{', '.join(left)} of {type(module).__name__} are in no stage and not run: where the "
            "network's own head is among them, name it, classifier=…; else the last exit starts "
            "anew",
            stacklevel=user_level(),
        )


def _from_module(
    module: nn.Module,
    stages: Sequence[str | nn.Module],
    stem: Sequence[str | nn.Module],
    input_shape: tuple[int, ...] | None,
    layout: str | Sequence[str] | None,
) -> Backbone:
    check_weights(module)
    if stem and not stages:
        raise ValueError("a stem without stages: name the stages too, stages=['…', …]")
    adapter = None if stages else _library_adapter(module)
    if adapter:
        settings = {"input_shape": input_shape, "layout": layout}
        options = {name: value for name, value in settings.items() if value is not None}
        takes = signature(adapter).parameters
        unknown = [name for name in options if name not in takes]
        if unknown:
            raise ValueError(f"{type(module).__name__} takes no {' and no '.join(unknown)}=")
        with buffers_kept(module):  # compared below as it was
            backbone = adapter(module, **options)
        if backbone.spec is not None and (why := rebuild_difference(backbone, rebuild)):
            backbone.spec, backbone.undescribed = None, why
        return backbone
    if len(needs := needed_inputs(module)) > 1:
        raise ValueError(
            f"can't wrap this {type(module).__name__}: its forward takes {', '.join(needs)}, and "
            "stages of one tensor are all that is found without an adapter. Write one, "
            "@multiexit.wrap.register(YourClass), that gives a Backbone whose start takes these"
        )
    if stages:
        return from_parts(module, stages, stem, input_shape, layout)
    if isinstance(module, nn.Sequential):
        return from_parts(module, list(module), [], input_shape, layout)
    for name in ("_orig_mod", "module"):  # of torch.compile; of DataParallel and its like
        if isinstance(getattr(module, name, None), nn.Module):
            raise ValueError(
                f"this {type(module).__name__} runs another network: wrap that one, its .{name}; "
                "compiling and spreading come after wrapping (TrainConfig(compile=True), "
                "accelerate launch)"
            )
    if input_shape is not None:
        return cuts.from_module(module, torch.zeros(1, *sizes(input_shape)), layout)
    raise ValueError(f"can't wrap this {type(module).__name__} by itself. {_help()}")


def _as_list(parts: Any, what: str) -> list[str | nn.Module]:
    """Parts as a list, from anything that can be gone through once."""
    if isinstance(parts, str) or not isinstance(parts, Iterable):
        raise ValueError(f"stages and stem are lists of names, got {what}={parts!r:.80}")
    return list(parts)


def _library_adapter(module: nn.Module) -> Callable[..., Backbone] | None:
    """The adapter for a class of a library in `KINDS`, or for one derived from it.

    The library is imported only when such a class turns up.
    """
    libraries = {base.__module__.partition(".")[0] for base in type(module).__mro__}
    for kind in KINDS.values():
        if kind.library in libraries and (kind.whole is None or hasattr(module, kind.whole)):
            return kind.adapter().from_instance
    return None


def _help() -> str:
    return (
        f"What works: {_names()}; an instance of these; an nn.Sequential; any module that takes "
        "one tensor with input_shape= of one row, (3, 32, 32) of an image or (128,) of 128 tokens, "
        "or with stages=['name', …] (and stem=['name', …]); a Backbone; or an adapter of your own, "
        "@multiexit.wrap.register(YourClass)"
    )


def _names() -> str:
    names = [f"'{kind.prefix}{kind.example}'" for kind in KINDS.values() if kind.prefix]
    return f"a hub name or folder of a transformers model, {', '.join(names)}"
