"""The heads of transformers' models that classify whole rows, or each token of a text.

Letters: B batch rows, T tokens, H width, K classes.
"""

import warnings
from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
)

from multiexit.backbones.classifier import TOKEN_PROBLEM, FirstToken, NetworkHead
from multiexit.backbones.transformers.families import FAMILIES, part
from multiexit_runner.user_line import user_level

ENDING = "ForSequenceClassification"
ENDINGS = (ENDING, *(f"For{of}Classification" for of in ("Image", "Audio", "Video")))
"""How the names of classes end that classify whole rows, by `logits` [B, K]."""
OF_TOKENS = "ForTokenClassification"
"""How the names of classes end that classify tokens, by `logits` [B, T, K]."""


def classifier_of(model: Any) -> NetworkHead | None:
    """The head of a `…ForSequenceClassification` or `…ForTokenClassification`; else None.

    It is as the library's forward runs it.
    """
    if not is_library_classifier(model):
        return None
    config = model.config
    if classifies_tokens(model):
        return _of_tokens(model)
    family = FAMILIES[config.model_type]
    head_name, _, _ = family.linear.rpartition(".")
    head = part(model, head_name) if head_name else None
    if head is not None and not _is_library_head(head):  # the forward hands it the feature as it is
        names = labels(config, config.num_labels)
        return NetworkHead(head, config.num_labels, nn.Identity(), names, problem=problem_of(model))
    layers = {
        name: part(model, layer) if isinstance(layer, str) else layer()
        for name, layer in family.read.items()
    }
    if None in layers.values():  # a network without its pooler
        return None
    linear = part(model, family.linear)
    classes = linear.out_features if isinstance(linear, nn.Linear) else config.num_labels
    return NetworkHead(
        linear, classes, FirstToken(**layers), labels(config, classes), problem=problem_of(model)
    )


def _of_tokens(model: Any) -> NetworkHead | None:
    """Dropout and a linear layer on each token, which all of `FAMILIES` have."""
    dropout, linear = part(model, "dropout"), part(model, "classifier")
    if not isinstance(dropout, nn.Module) or not isinstance(linear, nn.Linear):
        return None
    classes = linear.out_features
    return NetworkHead(
        linear, classes, dropout, labels(model.config, classes), problem=TOKEN_PROBLEM
    )


def classifies(model: Any) -> bool:
    """Whether a model's class, or one that it is derived from, classifies rows or tokens."""
    return _is_one_of(model, (*ENDINGS, OF_TOKENS))


def classifies_tokens(model: Any) -> bool:
    """Whether a model's class, or one that it is derived from, is one that classifies tokens."""
    return _is_one_of(model, (OF_TOKENS,))


def _is_one_of(model: Any, endings: tuple[str, ...]) -> bool:
    return any(
        base.__name__.endswith(endings) and base.__module__.startswith("transformers.")
        for base in type(model).__mro__
    )


PROBLEM_TYPES = {
    "classification": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}
"""What transformers calls the problems of whole rows, `config.problem_type`."""


def problem_of(model: Any) -> str | None:
    """What a network's own head answers, a key of `multiexit.problems.PROBLEMS`, if that is said.

    One output is a number in transformers too, unless it is said to be several labels.
    """
    if classifies_tokens(model):
        return TOKEN_PROBLEM
    said = getattr(model.config, "problem_type", None)
    problem = next((name for name, type_ in PROBLEM_TYPES.items() if type_ == said), None)
    if said is not None and problem is None:
        _warn(f"problem_type={said!r}, none of {[*PROBLEM_TYPES.values()]}: it is left out")
    if problem == "classification" and model.config.num_labels == 1:
        _warn(f"problem_type={said!r} and one output, which is read as a number (regression)")
        return None
    return problem


def is_library_classifier(model: Any) -> bool:
    """Whether a model is the library's class for its type, with the library's own forward."""
    kind = model.config.model_type
    names = (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(kind),
        MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES.get(kind),
    )
    for base in type(model).__mro__:
        if base.__name__ in names and base.__module__.startswith("transformers."):
            return type(model).forward is base.forward and "forward" not in vars(model)
    return False


def _is_library_head(head: Any) -> bool:
    """Whether a head is the library's, with its own forward, so that its parts say what it does."""
    parts = all(hasattr(head, part) for part in ("dense", "dropout", "out_proj"))
    plain = type(head).__module__.startswith("transformers.") and "forward" not in vars(head)
    return parts and plain


def labels(config: Any, classes: int) -> list[str] | None:
    """The classes' names, if they are names, and one each."""
    if classes == 1 or config.num_labels != classes:
        return None
    labels = [str(config.id2label.get(index, "")) for index in range(classes)]
    numbers = all(label == f"LABEL_{index}" for index, label in enumerate(labels))
    if numbers:
        return None
    if "" in labels or len(set(labels)) < classes:
        _warn(
            f"id2label={config.id2label}, not a name of its own for each of 0 to {classes - 1}: "
            "classes go by their numbers unless labels= names them"
        )
        return None
    return labels


def _warn(what: str) -> None:
    warnings.warn(f"the network's configuration has {what}", stacklevel=user_level())
