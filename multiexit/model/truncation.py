"""A model cut for good behind one of its exits: a network without exits.

Letters: B batch rows, T tokens, D of the vector that a last layer reads, K classes.
"""

import warnings
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multiexit import problems
from multiexit.backbones import adapters
from multiexit.backbones.truncation.first_stages import first_stages
from multiexit.backbones.truncation.head_steps import Step, spelt, steps
from multiexit.backbones.truncation.library_form import LibraryForm, share
from multiexit.backbones.verify import mismatch
from multiexit.files.unreadable import one_line
from multiexit.model import heads, tokens
from multiexit.model.heads import (
    CertainHead,
    ChainedHead,
    LinearHead,
    OwnHead,
    PoolerHead,
    TokenHead,
)
from multiexit.model.model import MultiExitModel
from multiexit.runtime import evaluating
from multiexit_runner.user_line import user_level


class Truncated(nn.Module):
    """The network up to one exit of a model, and that exit's head: `logits = head(f_s) / τ`.

    It shares its parts with the model. It has no folder format: save the model, and cut it when it
    is loaded; or save its `state_dict()`, which has no weights of later stages.

    Args:
        model: whose head at this exit needs nothing that earlier heads left.
        exit: counted from 0.

    Example:
        >>> import torch, multiexit as mx
        >>> model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=10).eval()
        >>> static, x = mx.truncate(model, 2), torch.rand(4, 3, 32, 32)
        >>> torch.equal(static(x), model.predict(mx.FixedExit(2), x).logits_BC)
        True
    """

    def __init__(self, model: MultiExitModel, exit: int):
        super().__init__()
        self.backbone = first_stages(model.backbone, model.exits[exit] + 1)
        self.head = model.heads[exit]
        self.problem = model.problem
        self.temperature = nn.Buffer(model.temperature_M[exit].clone())
        self.answers_tokens = model.problem == "token-classification"
        self.training = self.backbone.training = model.training

    def forward(self, *args: Any, **inputs: Any) -> Tensor:
        """Logits [B, K], or of tokens [B, T, K], from what the model's backbone takes."""
        feature = None
        if self.answers_tokens:
            carry = tokens.start(self.backbone, args, inputs)
        else:
            carry = self.backbone.start(*args, **inputs)
        for stage in range(self.backbone.num_stages):
            carry, feature = self.backbone.stage(carry, stage)
        assert feature is not None
        logits_BK, _ = heads.ask(self.head, feature, carry.get("valid_BT"), {})
        if self.answers_tokens:
            logits_BK = tokens.in_order(logits_BK, carry)
        logits_BK = problems.outputs_of(logits_BK, self.problem)
        return (logits_BK / self.temperature).to(logits_BK.dtype)


class NoClassError(ValueError):
    """An exit that no class of a library can be."""


def truncate(model: MultiExitModel, exit: int) -> nn.Module:
    """Cut a model for good behind one of its exits: a static network, without exits.

    Its logits are those of `model.predict(mx.FixedExit(exit), …)`, and it has no weights of later
    stages. Those that it has share their memory with the model's; a temperature goes into the last
    layer, which is then a copy.

    Where transformers has a class that computes the same, the network is of that class, a
    `…ForSequenceClassification`, `…ForImageClassification` or `…ForAudioClassification` with fewer
    layers: its own `save_pretrained` writes a folder that every other tool loads. That is so for

    - the network's own head, at the last exit;
    - heads `pooler` and `own-pooler`, first token, on BERT, ALBERT, RoBERTa, CamemBERT, MPNet,
      XLM-RoBERTa, ERNIE and others whose class has such a pooler, with tanh;
    - head `linear` where the class reads one token by one layer: ViT and its relatives, and
      decoders, whose class has no bias: the exit's must be 0.

    A network of timm is of timm's own class in the same way: `timm.models.save_for_hf(network,
    folder, safe_serialization=True)` writes a folder that `timm.create_model("local-dir:FOLDER",
    pretrained=True)` loads. That is so for

    - the network's own head, at the last exit of any network;
    - head `linear` on a ViT (fewer blocks), and on a ResNet behind its second block or later (fewer
      layers, none in the groups behind the cut).

    It is compared with the exit on random rows first, with random numbers in weights that the class
    has and doesn't read, such as BigBird's pooler. It reads text as its class does: padding
    belongs at the end, and a decoder looks for `config.pad_token_id`. Any other network is a
    `Truncated`, which gives logits.

    Args:
        model: trained; it stays as it is, and gives the mode.
        exit: which one, counted from 0.

    Returns:
        A `PreTrainedModel`, whose forward gives an output with `logits` [B, K]; a network of timm,
        or a `Truncated`, whose forwards give logits [B, K]. Where a network of transformers or timm
        becomes a `Truncated`, a warning says why. All of torchvision's do: it has no folder format.

    Raises:
        ValueError: an exit that isn't there, or one whose head reads what earlier heads left.

    Example:
        >>> import tempfile, multiexit as mx
        >>> from transformers import AutoModelForSequenceClassification, BertConfig, BertModel
        >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
        >>> bert = mx.wrap(BertModel(BertConfig(num_hidden_layers=4, vocab_size=50, **sizes)))
        >>> static = mx.truncate(mx.MultiExitModel(bert, num_classes=3), 1)
        >>> type(static).__name__, static.config.num_hidden_layers
        ('BertForSequenceClassification', 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     static.save_pretrained(folder)
        ...     again = AutoModelForSequenceClassification.from_pretrained(folder)
    """
    exit = _checked(model, exit)
    try:
        return library_network(model, exit)
    except NoClassError as error:
        if _library(model) in _FORMS:
            plain = "what comes back is a plain module of multiexit's, a Truncated"
            warnings.warn(f"{error}; {plain}", stacklevel=user_level())
        return Truncated(model, exit)


def library_network(model: MultiExitModel, exit: int) -> Any:
    """Make the network of a library's own class that answers as an exit does.

    Args:
        model, exit: as for `truncate`.

    Returns:
        A `PreTrainedModel` of transformers, or a network of timm.

    Raises:
        ValueError: as `truncate` does; and where no class computes the same, a `NoClassError` with
            the reason.
    """
    exit = _checked(model, exit)
    library = _library(model)
    if problems.are_vectors(model.problem):
        raise NoClassError(f"exit {exit} gives vectors of length 1, as no class of transformers")
    try:
        plain = Truncated(model, exit)
        if adapters.layers(plain):
            raise ValueError("it has adapters: call multiexit.merge_adapters(model) first")
        if library not in _FORMS:
            raise ValueError(
                "only networks of transformers and timm have a folder format that others load; "
                f"{library or 'a network of your own'} has none"
            )
        wanted, temperature = _steps(model.heads[exit]), model.temperature_M[exit]
        form = _FORMS[library](model, exit, wanted)
        _set_head(form, wanted, temperature)
        with evaluating(plain), torch.no_grad():
            wanted_BK = plain(**form.rows)
        if gap := mismatch(form.answers(), wanted_BK, torch.finfo(wanted_BK.dtype).eps ** 0.5):
            raise ValueError(f"{type(form.network).__name__} answers otherwise: {gap}")
    except ValueError as error:
        where = library if library in _FORMS else "a library"
        raise NoClassError(f"exit {exit} fits no class of {where}: {error}") from error
    return form.network.train(model.training)


def save_network(network: Any, folder: Path) -> None:
    """Write a network of a library's own class as the library itself does.

    Args:
        network: from `library_network`.
        folder: made where it isn't there. Of transformers it loads by `from_pretrained`, of timm by
            `timm.create_model("local-dir:FOLDER", pretrained=True)`.
    """
    if type(network).__module__.startswith("transformers."):
        network.save_pretrained(folder)
        return
    from timm.models import save_for_hf

    names = network.pretrained_cfg.get("label_names")
    save_for_hf(
        network,
        str(folder),
        model_config={"label_names": names} if names else {},
        model_args=network._model_args,
        safe_serialization=True,
    )


def _library(model: MultiExitModel) -> str:
    """The library of whose parts a model's backbone is, or nothing."""
    libraries = {type(part).__module__.partition(".")[0] for part in model.backbone.modules()}
    return next((name for name in (*_FORMS, "torchvision") if name in libraries), "")


def _transformers(model: MultiExitModel, exit: int, steps: list[Step]) -> LibraryForm:
    from multiexit.backbones.truncation.transformers_form import (
        transformers_form,  # transformers' models take seconds
    )

    count = model.exits[exit] + 1
    return transformers_form(model.backbone, count, model.num_classes, model.labels, model.problem)


def _timm(model: MultiExitModel, exit: int, steps: list[Step]) -> LibraryForm:
    from multiexit.backbones.truncation.timm_form import timm_form

    first, *others = steps
    pool = first if isinstance(first, str) and len(others) == 1 else None
    count = model.exits[exit] + 1
    form = timm_form(model.backbone, count, model.num_classes, model.labels, pool)
    if model.preprocessing.get("kind") == "image":
        form.network.pretrained_cfg.update(
            input_size=tuple(model.preprocessing["shape"]),
            **{name: tuple(model.preprocessing[name]) for name in ("mean", "std")},
        )
    return form


_FORMS = {"transformers": _transformers, "timm": _timm}
"""Library → what makes a network of its own class, without the exit's head."""


def _checked(model: Any, exit: Any) -> int:
    """The exit, if it is there and its head can stand alone; else a ValueError."""
    if not isinstance(model, MultiExitModel):
        raise ValueError(
            f"truncate cuts a MultiExitModel, got {type(model).__name__}: load a saved one by "
            "MultiExitModel.from_pretrained(folder)"
        )
    whole = isinstance(exit, Integral) and not isinstance(exit, bool)
    if not whole or exit not in range(model.num_exits):
        raise ValueError(f"the exit to cut behind is one of 0..{model.num_exits - 1}; got {exit!r}")
    head = model.heads[int(exit)]
    if exit and isinstance(head, ChainedHead) and head.reads_earlier:
        raise ValueError(
            f"the head of exit {exit}, a {type(head).__name__}, reads what earlier heads left, and "
            "can't stand alone: train with another head"
        )
    return int(exit)


def _steps(head: nn.Module) -> list[Step]:
    """The steps of an exit's head.

    Raises:
        ValueError: a head of no class that a library has, too.
    """
    match head:
        case CertainHead():
            return _steps(head.base)
        case OwnHead():
            return steps(head.read, head.linear)
        case PoolerHead():
            return [head.pool, head.pooler, "tanh", head.linear]
        case TokenHead():
            return [head.linear]
        case LinearHead():
            return [head.pool, head.linear]
    raise ValueError(f"no class of transformers or timm has a head like {type(head).__name__}")


def _set_head(form: LibraryForm, wanted: list[Step], temperature: Tensor) -> None:
    """Give a network's own head an exit's weights.

    Args:
        form: the network.
        wanted: the steps of the exit's head.
        temperature: the exit's.

    Raises:
        ValueError: a head of other steps, or without room for a weight.
    """
    kind = type(form.network).__name__
    if spelt(form.head) != spelt(wanted):
        raise ValueError(
            f"the head of {kind} is ({spelt(form.head)}), the exit's ({spelt(wanted)})"
        )
    for place, source in zip(form.head, wanted, strict=True):
        if isinstance(place, str) or isinstance(source, str):
            continue
        state = source.state_dict()
        if source is wanted[-1] and temperature != 1:
            if not isinstance(source, nn.Linear):
                raise ValueError(f"a {type(source).__name__} can't be divided by a temperature")
            state = {name: tensor / temperature for name, tensor in state.items()}
        if getattr(place, "bias", place) is None and "bias" in state and state.pop("bias").any():
            raise ValueError(
                f"the last layer of {kind} has no bias, and the exit's isn't 0: freeze it at 0 "
                "before training"
            )
        try:
            share(form.network, place, state)
        except ValueError as error:
            raise ValueError(f"the head of {kind} has other sizes: {one_line(error)}") from error
