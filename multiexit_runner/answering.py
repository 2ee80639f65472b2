"""What a classifier is asked and what it answers, as plain data: `multiexit.Classifier`'s too.

Letters: C classes.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from multiexit_runner.reading import Window, windows, windows_at_hand

Answer = dict[str, Any]
Prepare = Callable[[Any, str], Any]
"""Makes one input ready, or refuses it by a ValueError; the string says where it stood."""

Respond = Callable[[Sequence[Any], int], Iterator[Answer]]
"""Answers prepared inputs in order; the number is the place of the first."""


class Encoded(NamedTuple):
    """An input as the network takes it.

    Args:
        inputs: by name or place, each without a row's dimension: arrays or tensors.
        cut: whether it fills all tokens that the model reads, so that some may have been cut.
        words: where words are answered, they and the word that each token answers for.
    """

    inputs: dict[Any, Any]
    cut: bool = False
    words: tuple[Sequence[str], Sequence[int | None]] | None = None


WINDOWS = {"text": 32, "image": 4}
"""Batches that are read and regrouped together: of texts, which are sorted by length, so many that
a batch has those of nearly one length."""

AHEAD = 4
"""Batches that are read of a generator before they are answered."""


def answers(
    inputs: Any, check: Prepare, prepare: Prepare, respond: Respond, kind: str, batch_size: int
) -> Answer | list[Answer] | Iterator[Answer]:
    """One answer for one input, a list for what has a length, else a generator.

    Args:
        inputs: one, or several.
        check: looks at an input without reading its file: a list's are all looked at first.
        prepare: makes it ready.
        respond: answers some.
        kind: of inputs, as in `WINDOWS`.
        batch_size: of the model.
    """
    if is_one(inputs):
        return next(respond([prepare(inputs, "the input")], 0))
    if hasattr(inputs, "iloc") and hasattr(inputs, "columns"):
        raise ValueError(
            "inputs are a data frame, of several columns: give one, such as df['text']"
        )
    if isinstance(inputs, Set | Mapping) or not isinstance(inputs, Iterable) or _no_length(inputs):
        raise ValueError(
            f"inputs are one input, or a list or generator of them; got {type(inputs).__name__}"
        )
    if not isinstance(inputs, Sized):
        return _in_parts(inputs, prepare, respond, kind, batch_size)
    rows = list(inputs)
    for place, row in enumerate(rows):
        check(row, f"inputs[{place}]")
    return list(_in_parts(rows, prepare, respond, kind, batch_size))


def parts(inputs: Iterable[Any], kind: str, batch_size: int) -> Iterator[Window]:
    """Inputs that are read together, and what their source raised behind them.

    Of what has a length they are `WINDOWS` batches; of a generator those that are there after
    0.05 s, `AHEAD` batches at most.

    Args:
        inputs: a list, or a generator.
        kind: as in `WINDOWS`.
        batch_size: of the model.
    """
    if isinstance(inputs, Sized):
        return windows_at_hand(iter(inputs), WINDOWS[kind] * batch_size)
    return windows(inputs, AHEAD * batch_size)


def is_one(value: Any) -> bool:
    """Whether it is a single input: a string, path, pair, picture, or an array of one picture."""
    if isinstance(value, str | bytes | os.PathLike | tuple | Mapping):
        return True
    if isinstance(value, np.ndarray):
        return value.ndim in (2, 3) and value.dtype.kind in "biuf"
    return is_picture(value)


def _no_length(value: Any) -> bool:
    """Whether it is an array of no dimension, which says that it can be iterated."""
    return isinstance(value, np.ndarray) and value.ndim == 0


def is_picture(value: Any) -> bool:
    """Whether it is an image of Pillow."""
    return any(kind.__module__.startswith("PIL.") for kind in type(value).__mro__)


def _in_parts(
    inputs: Iterable[Any], prepare: Prepare, respond: Respond, kind: str, batch_size: int
) -> Iterator[Answer]:
    """Answers part after part; where an input can't be used, those before it come first."""
    place = 0
    for items, error in parts(inputs, kind, batch_size):
        ready = []
        for item in items:
            try:
                ready.append(prepare(item, f"inputs[{place + len(ready)}]"))
            except ValueError as wrong:
                error = wrong
                break
        if ready:
            yield from respond(ready, place)
        place += len(ready)
        if error is not None:
            raise error


def text_of(item: Any, paired: bool, where: str) -> tuple[str, str | None]:
    """An input as a text, or a pair of texts.

    Args:
        item: a string; a pair, or a mapping with `"text"` and `"text_pair"`.
        paired: whether the model reads pairs.
        where: the input stood.

    Raises:
        ValueError: anything else, or an empty text.
    """
    given: Sequence[Any] = (item,)
    if isinstance(item, Mapping):
        names = ("text", "text_pair") if paired else ("text",)
        if {*item} != {*names}:
            raise ValueError(
                f"{where} has the keys {_short([*item])}; this model reads {' and '.join(names)}"
            )
        given = [item[name] for name in names]
    elif isinstance(item, tuple | list):
        given = item
    if len(given) != 1 + paired or (isinstance(item, tuple | list) and not paired):
        reads = 'pairs of texts, ("one", "other")' if paired else "single texts"
        raise ValueError(f"{where} is {_short(item)}; this model reads {reads}")
    for text in given:
        if not isinstance(text, str):
            raise ValueError(f"{where} is {_short(item)}; a text must be a string")
        if not text.strip():
            raise ValueError(f"{where} is {_short(item)}: an empty text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where} holds {text[error.start]!r}, half a character: mend it, or put U+FFFD in "
                "its place"
            ) from error
    first, *second = map(str.__str__, given)
    return first, second[0] if second else None


def check_image(item: Any, where: str) -> None:
    """Refuse what is no image, without reading it.

    Args:
        item: an image of Pillow, a file's name or bytes, or an array uint8 [H, W] or [H, W, C].
        where: the input stood.

    Raises:
        ValueError: anything else.
    """
    if isinstance(item, np.ndarray):
        shape = item.shape
        fits = item.ndim == 2 or (item.ndim == 3 and shape[2] in (1, 3, 4))
        if item.dtype == np.uint8 and fits and item.size:
            return
        got = f"an array {item.dtype} {list(shape)}"
        raise ValueError(
            f"{where} is {got}: arrays are images as uint8 [height, width, 3], or [height, width]"
        )
    if not (isinstance(item, str | bytes | os.PathLike) or is_picture(item)) or item in ("", b""):
        raise ValueError(
            f"{where} is {_short(item)}; this model reads images: of Pillow, file names, bytes of "
            "files, or arrays"
        )


def picture_of(item: Any) -> Any:
    """An array as an image of Pillow; anything else as it is."""
    if not isinstance(item, np.ndarray):
        return item
    from PIL import Image

    pixels = item.squeeze(2) if item.shape[2:] == (1,) else item
    return Image.fromarray(np.ascontiguousarray(pixels))


def check_top(top_k: Any, problem: str, num_classes: int) -> int:
    """How many classes' scores are given.

    Args:
        top_k: None is all.
        problem: of the model.
        num_classes: C.

    Raises:
        ValueError: no whole number from 1 to C, or a model of numbers.
    """
    if top_k is None:
        return num_classes
    if problem not in ("classification", "multi-label"):
        raise ValueError(f"top_k={top_k!r} is not for {problem}: leave it out")
    whole = isinstance(top_k, Integral) and not isinstance(top_k, bool)
    if not whole or not 1 <= int(top_k) <= num_classes:
        raise ValueError(f"top_k is a whole number from 1 to {num_classes}, got {top_k!r}")
    return int(top_k)


def check_batch(batch_size: Any) -> int:
    """The batch size, or a ValueError."""
    whole = isinstance(batch_size, Integral) and not isinstance(batch_size, bool)
    if not whole or not 1 <= int(batch_size) < 2**31:
        raise ValueError(f"batch_size is a whole number from 1, got {batch_size!r:.80}")
    return int(batch_size)


def check_problem(problem: str) -> None:
    """Refuse models whose answers are none for a whole row.

    Raises:
        ValueError: with the problem.
    """
    if problem not in SAY:
        raise ValueError(
            f"a Classifier answers {', '.join(SAY)}; this model's problem is {problem}"
        )


def answer_of(
    logits_C: np.ndarray, problem: str, labels: Sequence[Any] | None, top_k: int
) -> Answer:
    """What a row's logits say.

    Args:
        logits_C: [C], of the exit where it left.
        problem: of the model.
        labels: the classes' names; None calls them by number.
        top_k: how many classes' scores are given.
    """
    names: Sequence[Any] = range(len(logits_C)) if labels is None else labels
    if len({*names}) < len(names):  # 1 and True
        names = [str(name) for name in names]
    return SAY[problem](logits_C.astype(np.float64), names, top_k)


def written(answer: Answer) -> Answer:
    """An answer as it is written down, over HTTP or in a file: its probabilities in six digits.

    >>> written({"label": "good", "score": 0.98765432, "scores": {"good": 0.98765432, "bad": 1e-9}})
    {'label': 'good', 'score': 0.987654, 'scores': {'good': 0.987654, 'bad': 1e-09}}
    """
    return {
        name: _six_digits(value) if name in ("score", "scores") else value
        for name, value in answer.items()
    }


def _six_digits(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _six_digits(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_six_digits(each) for each in value]
    return value if value is None else float(f"{value:.6g}")


def _one_class(z_C: np.ndarray, names: Sequence[Any], top_k: int) -> Answer:
    p_C = np.exp(z_C - z_C.max())
    p_C /= p_C.sum()
    best = np.argsort(-z_C, kind="stable")[:top_k]
    scores = {names[c]: float(p_C[c]) for c in best}
    return {"label": names[best[0]], "score": float(p_C[best[0]]), "scores": scores}


def _several_labels(z_C: np.ndarray, names: Sequence[Any], top_k: int) -> Answer:
    p_C = [1 / (1 + math.exp(-z)) if z > -700 else 0.0 for z in z_C.tolist()]
    best = np.argsort(-z_C, kind="stable")
    return {
        "labels": [name for name, z in zip(names, z_C, strict=True) if z > 0],
        "scores": {names[c]: p_C[c] for c in best[:top_k]},
    }


def _numbers(z_C: np.ndarray, names: Sequence[Any], top_k: int) -> Answer:
    values = z_C.tolist()
    return {"value": values[0]} if len(values) == 1 else {"values": values}


def _vector(z_C: np.ndarray, names: Sequence[Any], top_k: int) -> Answer:
    return {"vector": z_C.tolist()}


SAY: dict[str, Callable[[np.ndarray, Sequence[Any], int], Answer]] = {
    "classification": _one_class,
    "multi-label": _several_labels,
    "regression": _numbers,
    "embedding": _vector,
}
"""What an answer says, by problem."""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]} …"
