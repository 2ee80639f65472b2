"""A model's folder on the Hugging Face hub."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from multiexit.files.paths import user_path
from multiexit.model.folder import SETTINGS
from multiexit.model.settings import read_settings, settings_text, without_places


def push(
    folder: str | Path,
    repo: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    private: bool | None = None,
    message: str = "Upload a multi-exit model",
) -> str:
    """Upload a folder that `save_pretrained` wrote, as one commit.

    The repository is made where it isn't there. Paths of this machine, by which a run finds its
    data again, stay here.

    Args:
        folder: of the model.
        repo: `"user/name"`.
        revision: a branch, made where it isn't there; None is the main one.
        token: None is the one that is logged in.
        private: of a repository that is made now; None is the account's own choice.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        ValueError: no model in the folder, or a name that no repository can have.
        OSError: the hub can't be reached, or refuses.
    """
    check_name(repo)
    folder = user_path(folder)
    settings = read_settings(folder / SETTINGS)
    api = HfApi(token=token)
    try:
        with tempfile.TemporaryDirectory() as place:
            copy = Path(place) / "model"
            shutil.copytree(folder, copy, copy_function=_link)
            _forget_places(settings)
            (copy / SETTINGS).unlink()
            (copy / SETTINGS).write_text(settings_text(settings), encoding="utf-8")
            api.create_repo(repo, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repo, branch=revision, exist_ok=True)
            done: Any = api.upload_folder(
                repo_id=repo, folder_path=copy, revision=revision, commit_message=message
            )
    except (HfHubHTTPError, OSError) as error:
        raise OSError(f"{repo} was not pushed: {' '.join(str(error).split())}") from error
    return str(getattr(done, "commit_url", done))


def _forget_places(settings: dict[str, Any]) -> None:
    """Take out where data and backbone lie on this machine."""
    settings["preprocessing"] = without_places(settings["preprocessing"])
    config = (settings["backbone"] or {}).get("config")
    if isinstance(config, dict) and Path(config.get("_name_or_path") or "").is_absolute():
        config["_name_or_path"] = ""


def check_name(repo: str) -> None:
    """Refuse what can't be a repository's name, `"user/name"`, by a ValueError."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is no name of a repository: {error}") from error


def check_push(repo: str) -> None:
    """Refuse before a long run what `push` can't do after it.

    Raises:
        ValueError: a name that no repository can have; the hub is switched off; nobody is logged
            in.
    """
    check_name(repo)
    if constants.HF_HUB_OFFLINE:
        raise ValueError(f"{repo} can't be pushed while HF_HUB_OFFLINE is set: unset it")
    if get_token() is None:
        raise ValueError(
            f"{repo} can't be pushed, since nobody is logged in: run `hf auth login`, or set "
            "HF_TOKEN"
        )


def _link(source: str, target: str) -> None:
    """The same file at another place, without its bytes where the disk can."""
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)
