"""The folder of a run: what may be begun or gone on with in it, and that one run at a time is.

Everything here is about whether; what lies in the folder is the trainer's, `checkpoint`'s and
`provenance`'s.
"""

import errno
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from multiexit.files.names import HISTORY, MODEL, PICTURE, RESULTS, RUN
from multiexit.files.paths import check_folder
from multiexit.model.folder import SETTINGS
from multiexit.runtime import first_process_checks
from multiexit.training.config import TrainConfig
from multiexit.training.records import checkpoint

try:
    import fcntl
except ImportError:  # pragma: no cover (on systems without it, runs aren't kept apart)
    fcntl = None

LOCK = ".lock"
RUN_FILES = (
    *(checkpoint.FOLDER, MODEL, HISTORY, RUN),
    *(RESULTS, PICTURE, "examples.json", "report.html"),
)
"""The files that a run leaves behind, which `overwrite` clears away."""

_holders: dict[str, int] = {}  # by folder, since a lock doesn't refuse its own process
_guard = threading.Lock()


def check(config: TrainConfig) -> None:
    """Refuse what `held` would, and leave everything as it is."""
    with held(config):
        pass


@contextmanager
def held(config: TrainConfig) -> Iterator[None]:
    """Inside, the run's folder is there and no other run may use it.

    The first process holds it for all. The lock ends with that process, however it ends.

    Raises:
        ValueError: a file or no permission; another run is writing, which is named; a run is there
            without `resume` or `overwrite`; or `resume` with nothing to go on from.
    """
    if config.output is None:
        yield
        return
    folder = Path(config.output)
    lock_files: list[IO[str]] = []
    new_folders: list[Path] = []

    def acquire() -> None:
        _check_place(folder)
        new_folders.extend(part for part in (folder, *folder.parents) if not part.exists())
        traces = [folder / name for name in (RUN, LOCK)]
        began = folder in new_folders or any(path.exists() for path in traces)
        folder.mkdir(parents=True, exist_ok=True)
        lock_files.append(_acquire_lock(folder))
        _check_run(config, folder, began)

    try:
        first_process_checks(acquire)
        yield
    finally:
        for file in lock_files:
            _release_lock(folder, file)
        for part in new_folders:  # where nothing was written
            with suppress(OSError):
                part.rmdir()


def holds_run(folder: Path) -> bool:
    """Whether a run has saved something in a folder."""
    return bool(checkpoint.names(folder)) or (folder / MODEL / SETTINGS).exists()


def clear(folder: Path) -> None:
    """Remove what another run left, as `overwrite` asks."""
    for name in RUN_FILES:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _check_place(folder: Path) -> None:
    check_folder("output", folder)
    if (folder / SETTINGS).exists():
        raise ValueError(f"output {str(folder)!r} is a saved model, and no run's folder")


def _check_run(config: TrainConfig, folder: Path, began: bool) -> None:
    """Refuse what doesn't go with what lies in the folder.

    Args:
        began: whether the folder is new, or a run began there, that may have saved nothing.
    """
    saved = bool(checkpoint.names(folder))
    finished = (folder / MODEL / SETTINGS).exists()
    if config.overwrite or (config.resume and saved):
        return
    if not config.resume and holds_run(folder):
        raise ValueError(
            f"{folder} holds a run: resume=True goes on with it, overwrite=True "
            "clears it away and starts anew; or name another output"
        )
    if config.resume and finished:
        raise ValueError(
            f"{folder} holds a run without checkpoints, so resume=True has nothing to "
            "go on from: overwrite=True clears it away and starts anew"
        )
    if config.resume and not began:
        problem = "holds no run" if any(p.name != LOCK for p in folder.iterdir()) else "is empty"
        raise ValueError(
            f"{folder} {problem}, so there is nothing that resume=True could go on "
            "with: leave it out, or look whether the name is right (a folder that doesn't exist "
            "yet is begun anew)"
        )


def _acquire_lock(folder: Path) -> IO[str]:
    """The folder's lock, open as long as it is held."""
    key, path = str(folder.resolve()), folder / LOCK
    with _guard:
        if _holders.get(key) == os.getpid():
            raise ValueError(
                f"another run of this very process is writing into {folder}: let it end first"
            )
        file = _lock_file(path)
        while not _try_lock(file, folder):
            file.close()  # whose it was has just removed it
            file = _lock_file(path)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now}))
        file.flush()
        _holders[key] = os.getpid()
        return file


def _lock_file(path: Path) -> IO[str]:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise ValueError(f"{path} is a run's lock, and no regular file there: remove it")
    return path.open("a+")


def _try_lock(file: IO[str], folder: Path) -> bool:
    """Whether the lock is ours now; False for a file that is no longer the folder's."""
    try:
        if fcntl is not None:
            # Of the process, not of the open file: workers that are forked don't keep it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return True  # a file system without locks
        file.seek(0)
        owner = file.read()
        file.close()
        raise ValueError(
            f"another run is writing into {folder}: {_owner_text(owner)}; let it end, or name "
            "another output"
        ) from error
    try:
        return os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat())
    except FileNotFoundError:
        return False


def _release_lock(folder: Path, file: IO[str]) -> None:
    with _guard:
        (folder / LOCK).unlink(missing_ok=True)
        file.close()
        _holders.pop(str(folder.resolve()), None)


def _owner_text(text: str) -> str:
    try:
        owner: Any = json.loads(text)
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (KeyError, TypeError, ValueError):
        return "one that has just begun"
