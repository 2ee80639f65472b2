"""What a network of transformers is tried on: random texts, images, videos or sound.

Letters: B batch rows, T tokens.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from multiexit.backbones.layers.recording import Batch
from multiexit.backbones.sequential import sizes
from multiexit.backbones.transformers import configs, text_inputs
from multiexit.backbones.transformers.recorded_rows import ROWS
from multiexit.backbones.transformers.text_inputs import Limits

TOKENS = 9
"""The length of the rows that a network of texts is tried on, where rows have none of their own."""

POSITIONS = ("position_embeddings", "position_embedding", "positions_embed", "wpe")
"""What a table beside that of tokens is called whose rows `position_ids` are."""

MORE_ROWS = 8
"""The most rows that a table of positions has beside those that are counted: OPT's has 2."""


class TextTrial(NamedTuple):
    """Texts for one network.

    Args:
        limits: the sizes of its tables, and how many tokens it takes.
        takes: the names of inputs that it takes.
        padding: the token that fills rows up; 0 where there is none.
        length: T, where all rows have it.
        device: of the network.
        token_types: whether it takes token types and has no table of them, so that it isn't known
            what they are used for.
    """

    limits: Limits
    takes: list[str]
    padding: int
    length: int | None
    device: torch.device
    token_types: bool

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """The shape of one row, where it has one."""
        return None if self.length is None else (self.length,)

    def batch(self, rows: int, seed: int, tokens: int = TOKENS, padded: bool = True) -> Batch:
        """Random rows, of which all but the first are padded at their end."""
        generator = torch.Generator().manual_seed(seed)
        tokens = self.length or min(tokens, self.limits.tokens or tokens)
        known = range(self.limits.sizes["input_ids"])
        vocabulary = torch.tensor([token for token in known if token != self.padding][:1000])
        ids_BT = vocabulary[torch.randint(len(vocabulary), (rows, tokens), generator=generator)]
        valid_BT = torch.ones(rows, tokens, dtype=torch.bool)
        if padded:
            for row in range(1, rows):
                valid_BT[row, max(1, tokens - 2 * row) :] = False
        ids_BT[~valid_BT] = self.padding
        inputs = {"input_ids": ids_BT, "attention_mask": valid_BT.long()}
        if self.token_types:
            types_BT = torch.randint(2, (rows, tokens), generator=generator)
            inputs["token_type_ids"] = types_BT * valid_BT
        options = {"use_cache": False} if "use_cache" in self.takes else {}
        given = {name: value.to(self.device) for name, value in inputs.items()}
        return Batch({**given, **options}, rows, tokens, valid_BT.to(self.device))

    def batches(self) -> list[Batch]:
        """Batches to record and compare on: two of one length, then others, with positions."""
        some = [self.batch(2, 0), self.batch(3, 1)]
        if self.length is not None:  # which may be long
            return [*some, self.batch(1, 3, padded=False)]
        others = [self.batch(2, 2, TOKENS + 4), self.batch(3, 3, padded=False)]
        if "position_ids" in self.takes:
            for batch in others:
                place_T = torch.arange(batch.length, device=self.device)
                batch.inputs["position_ids"] = place_T.repeat(batch.rows, 1)
        return [*some, *others]


class RowTrial(NamedTuple):
    """Images, videos or sound for one network.

    Args:
        name: of its main input.
        input_shape: the shape of one row.
        like: a tensor of the network's device and precision.
    """

    name: str
    input_shape: tuple[int, ...]
    like: Tensor

    def batch(self, rows: int, seed: int) -> Batch:
        """Random rows."""
        x = torch.randn(rows, *self.input_shape, generator=torch.Generator().manual_seed(seed))
        return Batch({self.name: x.to(self.like.device, self.like.dtype)}, rows)

    def batches(self) -> list[Batch]:
        """Batches to record and compare on."""
        return [self.batch(2, 0), self.batch(3, 1)]


def trial(model: Any, input_shape: Sequence[int] | None = None) -> TextTrial | RowTrial:
    """What a network is tried on.

    Args:
        model: of transformers.
        input_shape: of one row; of text `(T,)`, None where rows may have any length.

    Raises:
        ValueError: a main input that isn't known; no table of tokens; a shape that doesn't fit.
    """
    parameters = signature(model.forward).parameters
    name = model.main_input_name
    if name not in parameters and "input_ids" in parameters:  # an encoder in a model of images
        name = "input_ids"
    if name != "input_ids":
        if name not in ROWS:
            raise ValueError(f"its main input is {name!r}, not one of {', '.join(ROWS)}")
        p = next(model.parameters())
        shape = _row_shape(name, model.config) if input_shape is None else sizes(input_shape)
        return RowTrial(name, tuple(shape), p)
    takes = [name for name in (*text_inputs.NAMES, "use_cache") if name in parameters]
    text = text_config(model.config)
    has_more = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    if has_more and "use_cache" not in takes and hasattr(text, "use_cache"):
        takes.append("use_cache")
    limits, padding = _limits(model), getattr(text, "pad_token_id", None)
    device = next(model.parameters()).device
    has_table = any("token_type" in name for name in _tables(model))
    token_types = "token_type_ids" in takes and not has_table
    if input_shape is None:
        return TextTrial(limits, takes, padding or 0, None, device, token_types)
    if padding is None:
        raise ValueError(
            "it has no padding token to fill up rows with: set model.config.pad_token_id"
        )
    length = _length(input_shape, limits.tokens)
    takes = [name for name in takes if name not in ("position_ids", "inputs_embeds")]
    limits = limits._replace(tokens=length)
    return TextTrial(limits, takes, padding, length, device, token_types)


def most_tokens(name: str) -> int | None:
    """The most tokens that a row may have, by a network's settings: no weights are read.

    Args:
        name: of the hub, or a folder.

    Returns:
        The number, as the backbone's `limits()` has it; None where there is none, or where what is
        named can't be made, as `multiexit.wrap` will say.
    """
    try:
        configs.check_source(name)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        with torch.device("meta"):
            return _most_tokens(AutoModel.from_config(config))
    except Exception:  # the library's parts raise all kinds
        return None


def trial_rows(model: Any, input_shape: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Random rows for a model of transformers, padded at their end where they are text.

    Args:
        model: as for `trial`.
        input_shape: the same.
    """
    with padding_known(model.config):
        inputs = trial(model, input_shape).batch(4, 1).inputs
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}


@contextmanager
def padding_known(config: Any) -> Iterator[None]:
    """Inside, a network that was given no padding token has one, so that it takes batches."""
    text = text_config(config)
    missing = getattr(text, "pad_token_id", 0) is None
    if missing:
        text.pad_token_id = 0
    try:
        yield
    finally:
        if missing:
            text.pad_token_id = None


def text_config(config: Any) -> Any:
    """The part of a configuration that is about text."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _length(input_shape: Sequence[int], most: int | None) -> int:
    shape = sizes(input_shape)
    if len(shape) != 1:
        raise ValueError(
            f"input_shape={tuple(shape)}, and its rows are texts: input_shape=(T,) is the number "
            "of tokens to which they are filled up"
        )
    if most is not None and shape[0] > most:
        raise ValueError(f"input_shape={tuple(shape)}, and it takes rows of {most} tokens at most")
    return shape[0]


def _limits(model: Any) -> Limits:
    embeddings = _embeddings(model)
    count, width = embeddings.weight.shape
    table_sizes = {"input_ids": int(count)}
    for name, table in _tables(model).items():
        if name.rpartition(".")[2] == "token_type_embeddings":
            table_sizes["token_type_ids"] = table.num_embeddings
    for name, table in _beside(model, embeddings).items():
        if name in POSITIONS and type(table) is nn.Embedding:  # a class of its own may count on
            table_sizes["position_ids"] = table.num_embeddings
    return Limits(table_sizes, _most_tokens(model), int(width))


def _most_tokens(model: Any) -> int | None:
    """The most tokens that a row may have, None where there is no table [positions, width].

    A configuration's number alone is no limit: rotary positions go on beyond it. A table is any
    matrix with as many rows, or with a few more, whatever the module that it is in; others count
    distances, or places in an image.
    """
    said = getattr(text_config(model.config), "max_position_embeddings", None) or 0
    found = []
    for name, owner in model.named_modules():
        if isinstance(owner, nn.Linear):
            continue
        for key, table in {**owner._parameters, **owner._buffers, **vars(owner)}.items():
            if not (isinstance(table, Tensor) and re.search("pos|wpe", f"{name}.{key}")):
                continue
            if table.ndim == 2 and (said <= 0 or said <= len(table) <= said + MORE_ROWS):
                # As RoBERTa does, some count positions from behind that of padding.
                padding = getattr(owner, "padding_idx", None)
                rows = len(table) - (0 if padding is None else padding + 1)
                found.append(min(rows, said) if said > 0 else rows)
    return min(found, default=None)


def _embeddings(model: Any) -> Any:
    """The table of embeddings by tokens."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError as error:
        tables = list(_tables(model).values())
        if len(tables) == 1:
            return tables[0]
        raise ValueError(
            "it has no table of embeddings by tokens (get_input_embeddings), so that it isn't "
            "known which tokens it takes"
        ) from error


def _beside(model: Any, part: nn.Module) -> dict[str, nn.Module]:
    """The parts of the module that has a part, by name."""
    owners = (m for m in model.modules() if any(child is part for child in m.children()))
    owner = next(owners, None)
    return {} if owner is None else dict(owner.named_children())


def _tables(model: Any) -> dict[str, nn.Embedding]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding)}


def _row_shape(name: str, config: Any) -> tuple[int, ...]:
    """The shape of one row of images or sound, as a configuration tells it."""
    if name.startswith("pixel_values"):
        config = getattr(config, "vision_config", config)
        size = getattr(config, "image_size", None) or getattr(config, "crop_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        frames = getattr(config, "num_frames", None) or getattr(config, "frames_per_clip", None)
        image = getattr(config, "num_channels", None) or 3, height, width
        return image if frames is None else (frames, *image)
    bins = getattr(config, "num_mel_bins", None)
    if bins and hasattr(config, "max_source_positions"):
        return bins, 2 * config.max_source_positions
    if bins and hasattr(config, "max_length"):
        return config.max_length, bins
    if hasattr(config, "feature_projection_input_dim"):
        return 100, config.feature_projection_input_dim
    return (16_000,)  # a second
