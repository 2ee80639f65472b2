"""A model's inputs: described for whoever runs its graphs, and drawn at random for checks.

Letters: B batch rows, T tokens.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multiexit.backbones import Backbone
from multiexit.data.text import TextDataset
from multiexit.model.model import MultiExitModel
from multiexit_runner.inputs import MASK

TYPES = {torch.int64: "int64", torch.int32: "int32", torch.float32: "float32", torch.bool: "bool"}


class Inputs(NamedTuple):
    """A model's inputs.

    Args:
        example: one batch, by name.
        below: of inputs that are indices, the number of entries of what they point into.
        max_tokens: how many tokens a row may have, or None.
    """

    example: dict[str, Tensor]
    below: dict[str, int]
    max_tokens: int | None

    def shape(self, name: str) -> list[str | int]:
        """An input's shape, "B" and "T" for any size.

        T is any size where there is an `attention_mask` [B, T].
        """
        sizes = self.example[name].shape[1:]
        mask = self.example.get(MASK)
        if mask is not None and mask.ndim == 2 and sizes[:1] == mask.shape[1:]:
            return ["B", "T", *sizes[1:]]
        return ["B", *sizes]

    def to_json(self) -> dict[str, dict[str, Any]]:
        """The inputs as plain data, by name."""
        data = {}
        for name, tensor in self.example.items():
            data[name] = {"dtype": TYPES[tensor.dtype], "shape": self.shape(name)}
            if name in self.below:
                data[name]["below"] = self.below[name]
        return data

    def draw(self, rows: int, tokens: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw a random batch; of text, rows are of all lengths up to the number of tokens.

        Args:
            rows: B.
            tokens: T, as far as the model takes so many.
            generator: what is drawn from.

        Returns:
            Inputs by name, [B, …] each.
        """
        sizes = {"B": rows, "T": min(tokens, self.max_tokens or tokens)}
        drawn = {}
        for name, tensor in self.example.items():
            shape = [sizes[size] if isinstance(size, str) else size for size in self.shape(name)]
            if name == MASK and self.shape(name) == ["B", "T"]:
                length_B1 = torch.randint(1, sizes["T"] + 1, (rows, 1), generator=generator)
                length_B1[0], length_B1[-1] = sizes["T"], 1
                drawn[name] = (torch.arange(sizes["T"]) < length_B1).to(tensor.dtype)
            elif tensor.is_floating_point():
                drawn[name] = torch.randn(shape, generator=generator)
            else:
                below = self.below.get(name, int(tensor.max()) + 1)
                drawn[name] = torch.randint(below, shape, generator=generator).to(tensor.dtype)
        return drawn


def inputs_of(
    model: MultiExitModel, batch: Mapping[str, Tensor] | None = None, tokenizer: Any = None
) -> Inputs:
    """Find a model's inputs: from a batch of the user's, or from the backbone's own example.

    Args:
        model: whose backbone gives the example.
        batch: inputs by name, or None.
        tokenizer: says which of the example's inputs it makes.

    Raises:
        ValueError: a batch that is no dict of tensors with a row per row.
    """
    example = _backbone_example(model.backbone, tokenizer) if batch is None else dict(batch)
    if batch is None and tokenizer is not None:  # by which a row's words say what is asked for
        own = dict.fromkeys(model.own_inputs, torch.ones_like(example["input_ids"]))
        example = {**example, **own}
    if not example or not all(isinstance(value, Tensor) for value in example.values()):
        kinds = {name: type(value).__name__ for name, value in example.items()}
        raise ValueError(f"inputs must be a dict of tensors by name, one batch; got {kinds}")
    for name, tensor in example.items():
        if not tensor.ndim or len(tensor) != len(next(iter(example.values()))):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}: each input needs all rows")
        if tensor.dtype not in TYPES:
            raise ValueError(
                f"{name} is {tensor.dtype}: exported inputs are {sorted(TYPES.values())}"
            )
    below, limit = model.backbone.limits()
    below = {**below, **dict.fromkeys(model.own_inputs, 2)}
    used_below = {name: rows for name, rows in below.items() if name in example}
    return Inputs({name: tensor.cpu() for name, tensor in example.items()}, used_below, limit)


def _backbone_example(backbone: Backbone, tokenizer: Any) -> dict[str, Tensor]:
    """The backbone's example; of text, with token types where it knows several."""
    example = backbone.example_inputs(2)
    if backbone.limits()[0].get("token_type_ids", 1) > 1:
        example["token_type_ids"] = torch.zeros_like(example["input_ids"])
    if tokenizer is None:
        return example
    fields = TextDataset.from_texts(tokenizer, ["a"]).fields
    return {name: tensor for name, tensor in example.items() if name in fields}
