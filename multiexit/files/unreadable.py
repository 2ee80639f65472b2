"""Why a hub name or folder can't be read, in one line in place of the libraries' several."""

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import errors

LONGEST = 300

REASONS = {
    errors.HFValidationError: "it is no folder, and can't be a name of the hub (NAME, OWNER/NAME)",
    errors.LocalEntryNotFoundError: (
        "it is no folder, the hub's cache lacks it, and the hub can't be reached: check the name "
        "and the network, or give a folder"
    ),
    errors.GatedRepoError: (
        "its owner lets in who asks: do so on its page of the hub, then log in (hf auth login)"
    ),
    errors.RepositoryNotFoundError: (
        "it is no folder, and the hub has no such repository, or a private one: check the name, "
        "or log in (hf auth login)"
    ),
}
"""By the hub's error; the first that is among the causes counts."""


def reason(name: str | Path, error: BaseException) -> str:
    """Why reading failed, and what to do where that is known.

    Args:
        name: of a folder, or of a repository of the hub.
        error: of transformers, the hub, or a library below them.

    >>> reason("a b", errors.HFValidationError("Repo id must …"))
    "it is no folder, and can't be a name of the hub (NAME, OWNER/NAME)"
    >>> reason(".", KeyError("added_tokens"))
    "KeyError: 'added_tokens'"
    """
    if not Path(name).is_dir():
        causes = list(_causes(error))
        for kind, text in REASONS.items():
            if any(isinstance(cause, kind) for cause in causes):
                return text
    return one_line(error)


def one_line(error: BaseException) -> str:
    """The first thing that a library's error says; its class too, where the text may say little.

    >>> one_line(RuntimeError("the weights\\n\\tare too few"))
    'RuntimeError: the weights are too few'
    """
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
    return text if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {text}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what raised it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
