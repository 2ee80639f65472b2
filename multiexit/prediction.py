"""Answers for text lines and image files, as plain data.

Letters: B batch rows, C channels.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from multiexit.data.batches import chunks, unpack
from multiexit.data.text import TextDataset
from multiexit.engine import Engine
from multiexit.model import MultiExitModel, Prediction
from multiexit.policies import ExitPolicy


def predict_lines(
    model: MultiExitModel,
    policy: ExitPolicy,
    tokenizer: Any,
    lines: Iterable[str],
    batch_size: int = 32,
) -> Iterator[dict[str, Any]]:
    """One answer per line; where the task has sentence pairs, a tab is between them.

    Raises:
        ValueError: a line without a tab where pairs are needed.
    """
    engine = Engine(model, policy)
    length = model.preprocessing.get("max_length", 128)
    for some in chunks(lines, batch_size):
        first, second = _sentences(some, paired=model.preprocessing.get("pairs", False))
        rows = TextDataset.from_texts(tokenizer, first, second, max_length=length)
        _, inputs, _ = unpack(rows.collate([rows[i] for i in range(len(rows))]))
        answer = engine.predict(**inputs)
        yield from _answers(model, answer, "text", some)


def predict_images(
    model: MultiExitModel, policy: ExitPolicy, files: Sequence[Path], batch_size: int = 32
) -> Iterator[dict[str, Any]]:
    """One answer per image file, resized to what the model was trained on.

    Raises:
        ValueError: a file that is no readable image.
    """
    engine = Engine(model, policy)
    for some in chunks(files, batch_size):
        images_BCHW = torch.stack([_image(path, model.preprocessing) for path in some])
        answer = engine.predict(images_BCHW)
        yield from _answers(model, answer, "file", [str(path) for path in some])


def _sentences(lines: Sequence[str], paired: bool) -> tuple[list[str], list[str] | None]:
    if not paired:
        return list(lines), None
    pairs = [line.split("\t") for line in lines]
    wrong = next((line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2), None)
    if wrong is not None:
        raise ValueError(f"this model reads sentence pairs, one tab between them; got {wrong!r}")
    return [first for first, _ in pairs], [second for _, second in pairs]


def _image(path: Path, how: dict[str, Any]) -> Tensor:
    from PIL import Image

    channels, height, width = how["shape"]
    try:
        with Image.open(path) as image:
            pixels = image.convert("L" if channels == 1 else "RGB").resize((width, height))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"can't read {path} as an image: {error}") from error
    x_CHW = torch.from_numpy(np.array(pixels, dtype=np.float32)).reshape(height, width, channels)
    mean, std = (torch.tensor(how[name]).view(-1, 1, 1) for name in ("mean", "std"))
    return (x_CHW.permute(2, 0, 1) / 255 - mean) / std


def _answers(
    model: MultiExitModel, answer: Prediction, name: str, inputs: Sequence[str]
) -> Iterator[dict[str, Any]]:
    for shown, logits_C, exit in zip(
        inputs, answer.logits_BC.float().cpu(), answer.exit_B.tolist(), strict=True
    ):
        row: dict[str, Any] = {name: shown, "exit": exit, "layers": model.exits[exit] + 1}
        if model.num_classes == 1:
            yield {**row, "value": float(logits_C[0])}
            continue
        p_C = logits_C.softmax(-1)
        best = int(p_C.argmax())
        label = best if model.labels is None else model.labels[best]
        yield {**row, "label": label, "confidence": round(float(p_C[best]), 6)}
