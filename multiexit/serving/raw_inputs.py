"""Answers for text lines and image files, as plain data.

Letters: B batch rows, C channels.
"""

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from multiexit.data import image_files
from multiexit.data.batches import unpack
from multiexit.data.order import chunks
from multiexit.data.text import TextDataset
from multiexit.model.exit_loop import Prediction
from multiexit.model.model import MultiExitModel
from multiexit.policies import ExitPolicy
from multiexit.problems import are_vectors
from multiexit.serving.engine import Engine
from multiexit_runner.answering import answer_of
from multiexit_runner.reading import windows


def predict_lines(
    model: MultiExitModel,
    policy: ExitPolicy,
    tokenizer: Any,
    lines: Iterable[str],
    batch_size: int = 32,
    all_scores: bool = False,
) -> Iterator[dict[str, Any]]:
    """Answer lines of text one by one; where the task has sentence pairs, a tab is between them.

    Lines that have come are answered as soon as no more come for 0.05 s, and never more than
    `batch_size` together; what has a length, such as a list, is answered in whole batches.

    Args:
        model: in evaluation mode.
        policy: decides who stops.
        tokenizer: of the model.
        lines: of text.
        batch_size: rows that go through the model together, at most.
        all_scores: the probability of each class too.

    Returns:
        Per line, in order, plain data: the text, the answer and the exit.

    Raises:
        ValueError: a line without a tab where pairs are needed. All lines before it are answered.
    """
    if model.problem == "token-classification":
        raise ValueError(
            "this model answers each token, and lines are answered as a whole: give a table of "
            "texts, or words to multiexit.Classifier"
        )
    engine = Engine(model, policy)
    length = model.preprocessing.get("max_length", 128)
    paired = model.preprocessing.get("pairs", False)
    read = 0
    for chunk in _chunks_at_hand(lines, batch_size):
        texts = list(takewhile(lambda line: not paired or line.count("\t") == 1, chunk))
        read += len(texts)
        if texts:
            first, second = _sentences(texts, paired)
            rows = TextDataset.from_texts(tokenizer, first, second, max_length=length)
            _, inputs, _ = unpack(rows.collate([rows[i] for i in range(len(rows))]))
            yield from _answers(model, engine.predict(**inputs), "text", texts, all_scores)
        if len(texts) < len(chunk):
            raise _no_pair(read + 1, chunk[len(texts)])


def _chunks_at_hand(lines: Iterable[str], batch_size: int) -> Iterator[list[str]]:
    """Lines that have come, some at a time, and then what the source raised."""
    if isinstance(lines, Sized):
        yield from chunks(lines, batch_size)
        return
    for texts, error in windows(lines, batch_size):
        if texts:
            yield texts
        if error is not None:
            raise error


def predict_images(
    model: MultiExitModel,
    policy: ExitPolicy,
    files: Iterable[str | Path],
    batch_size: int = 32,
    all_scores: bool = False,
) -> Iterator[dict[str, Any]]:
    """Answer image files one by one, prepared as the model's `preprocessing` says.

    A file that is no readable image gets its reason under `"error"`; the others are answered.

    Args:
        model: in evaluation mode.
        policy: decides who stops.
        files: names of image files.
        batch_size: rows that go through the model together, at most.
        all_scores: the probability of each class too.

    Returns:
        Per file, in order, plain data: its name, the answer and the exit.

    Raises:
        ValueError: a description that images can't be prepared by.
    """
    image_files.check(model.preprocessing)
    engine = Engine(model, policy)
    for paths in chunks(files, batch_size):
        results = [_image_or_reason(path, model.preprocessing) for path in paths]
        images = [image for image in results if isinstance(image, Tensor)]
        names = [
            str(p) for p, image in zip(paths, results, strict=True) if isinstance(image, Tensor)
        ]
        answers = iter(())
        if images:
            answer = engine.predict(torch.stack(images))
            answers = _answers(model, answer, "file", names, all_scores)
        for path, image in zip(paths, results, strict=True):
            if isinstance(image, str):
                yield {"file": str(path), "error": image}
            else:
                yield next(answers)


def prepared(model: MultiExitModel, tokenizer: Any, inputs: Sequence[str]) -> Any:
    """Make rows ready as `predict_lines` and `predict_images` do.

    Args:
        model: says how, by its `preprocessing`.
        tokenizer: of a model that reads text.
        inputs: lines of text, or names of image files.

    Returns:
        A data set of texts, or a list of batches of images.

    Raises:
        ValueError: a line or file that can't be read.
    """
    preprocessing = model.preprocessing
    if preprocessing.get("kind") == "image":
        return [
            torch.stack([image_files.read(path, preprocessing) for path in paths])
            for paths in chunks(inputs, 32)
        ]
    first, second = _sentences(inputs, paired=preprocessing.get("pairs", False))
    length = preprocessing.get("max_length", 128)
    return TextDataset.from_texts(tokenizer, first, second, max_length=length)


def _sentences(lines: Sequence[str], paired: bool) -> tuple[list[str], list[str] | None]:
    if not paired:
        return list(lines), None
    for number, line in enumerate(lines, 1):
        if line.count("\t") != 1:
            raise _no_pair(number, line)
    pairs = [line.split("\t") for line in lines]
    return [first for first, _ in pairs], [second for _, second in pairs]


def _no_pair(number: int, line: str) -> ValueError:
    return ValueError(
        f"line {number}: this model reads sentence pairs, one tab between them; got {line!r}"
    )


def _image_or_reason(path: str | Path, preprocessing: dict[str, Any]) -> Tensor | str:
    try:
        return image_files.read(path, preprocessing)
    except ValueError as error:
        return str(error)


def _answers(
    model: MultiExitModel,
    answer: Prediction,
    name: str,
    inputs: Sequence[str],
    all_scores: bool,
) -> Iterator[dict[str, Any]]:
    for text, logits_C, exit in zip(
        inputs, answer.logits_BC.float().cpu(), answer.exit_B.tolist(), strict=True
    ):
        row: dict[str, Any] = {name: text, "exit": exit, "layers": model.exits[exit] + 1}
        row |= _plain_answer(model, logits_C)
        if all_scores:
            said = answer_of(logits_C.numpy(), model.problem, model.labels, model.num_classes)
            row["scores"] = {name: round(p, 6) for name, p in said["scores"].items()}
        yield row


def _plain_answer(model: MultiExitModel, logits_C: Tensor) -> dict[str, Any]:
    """What a row's logits say, by name: a label, those that hold, a value, several, or a vector."""
    if are_vectors(model.problem):
        return {"vector": logits_C.tolist()}
    if model.problem in ("regression", "embedding"):
        return answer_of(logits_C.numpy(), model.problem, None, model.num_classes)
    names = model.labels or range(model.num_classes)
    if model.problem == "multi-label":
        shares = zip(names, logits_C.sigmoid().tolist(), strict=True)
        held = [(name, p) for name, p in shares if p > 0.5]
        return {
            "labels": [name for name, _ in held],
            "confidences": [round(p, 6) for _, p in held],
        }
    p_C = logits_C.softmax(-1)
    best = int(p_C.argmax())
    return {"label": names[best], "confidence": round(float(p_C[best]), 6)}
