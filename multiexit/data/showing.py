"""Rows of a data set as a person sees them: texts, and pictures that a page can hold."""

import base64
import io
from typing import Any

import torch

LONGEST, WIDEST = 400, 96
"""Characters of a text, pixels of a picture."""


def shown(rows: Any, row: int, preprocessing: dict[str, Any]) -> dict[str, Any]:
    """A row's input as plain data: `{"text": [...]}`, `{"image": "data:image/png;…"}` or `{}`.

    A text is what the network read: its tokens, decoded, with as many parts as there are between
    separators. A picture is the normalised one, with the normalisation taken back.

    Args:
        rows: the data set.
        row: which.
        preprocessing: of the model.

    Example:
        >>> from multiexit.data import digits
        >>> from multiexit.data.showing import shown
        >>> images = digits.load()
        >>> shown(images.test, 0, images.preprocessing)["image"][:22]
        'data:image/png;base64,'
    """
    item, tokenizer = rows[row], getattr(rows, "tokenizer", None)
    if isinstance(item, dict) and tokenizer is not None and "input_ids" in item:
        return {"text": _texts(item["input_ids"].tolist(), tokenizer)}
    pixels = item[0] if isinstance(item, tuple) else None
    normalised = {"mean", "std"} <= preprocessing.keys()
    if normalised and isinstance(pixels, torch.Tensor) and pixels.ndim == 3:
        return {"image": _picture(pixels, preprocessing)}
    return {}


def _texts(tokens: list[int], tokenizer: Any) -> list[str]:
    parts: list[list[int]] = [[]]
    for token in tokens:
        if token == tokenizer.sep_token_id:
            parts.append([])
        else:
            parts[-1].append(token)
    texts = [tokenizer.decode(part, skip_special_tokens=True).strip() for part in parts]
    return [text if len(text) <= LONGEST else text[:LONGEST] + "…" for text in texts if text]


def _picture(pixels_CHW: torch.Tensor, preprocessing: dict[str, Any]) -> str:
    from PIL import Image

    mean, std = (torch.tensor(preprocessing[key])[:, None, None] for key in ("mean", "std"))
    scaled = ((pixels_CHW.cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    array = scaled.permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    picture.thumbnail((WIDEST, WIDEST))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
