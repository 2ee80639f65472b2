"""Errors of transformers and the hub, in one line of ours each."""

import pytest
from huggingface_hub import errors
from transformers.utils.hub import cached_file

from multiexit.files.unreadable import LONGEST, REASONS, one_line, reason


@pytest.mark.parametrize("kind", REASONS)
def test_what_the_hub_refuses_is_found_below_what_transformers_raises(kind):
    below = kind.__new__(kind)
    error = OSError("We couldn't connect\nCheck your connection")
    error.__cause__ = RuntimeError()
    error.__cause__.__context__ = below
    assert reason("owner/name", error) == REASONS[kind]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("owner/nosuch", errors.LocalEntryNotFoundError), ("a b", errors.HFValidationError)],
)
def test_transformers_own_errors_are_told_apart(name, kind, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"connect|Repo id") as raised:
        cached_file(name, "config.json")
    assert reason(name, raised.value) == REASONS[kind]


def test_of_a_folder_the_librarys_first_words_count(tmp_path):
    error = OSError(f"no file named\n\tmodel.safetensors {'x' * 1000}")
    said = reason(tmp_path, error)
    assert said.startswith("no file named model.safetensors xxx")
    assert len(said) <= LONGEST + 2
    assert one_line(KeyError("added_tokens")) == "KeyError: 'added_tokens'"
