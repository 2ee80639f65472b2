"""The database of a search: made, opened, and left alone where it is another program's."""

import itertools
import sqlite3
import time
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

HEARTBEAT, GRACE = 15, 60  # seconds between signs of life; without one a trial counts as cut off


def storage_errors() -> tuple[type[Exception], ...]:
    """The errors of a database that fails."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    return StorageInternalError, SQLAlchemyError


def reason_of(error: BaseException) -> str:
    """The database's own words."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).splitlines()[0]


def sqlite_address(file: Path) -> str:
    """The address of an SQLite file, whatever is in its name."""
    from sqlalchemy import URL, make_url

    url = URL.create("sqlite", database=str(file)).render_as_string()
    if make_url(url).database != str(file):  # before 2.1 SQLAlchemy writes a ? as it is
        raise ValueError(f"output is in {file.parent}: SQLAlchemy before 2.1 takes no ? in a name")
    return url


def check_file(url: str) -> None:
    """Refuse an SQLite file of another program before anything is written to it."""
    from sqlalchemy import make_url

    file = Path(make_url(url).database or "") if url.startswith("sqlite:///") else None
    if file is None or not file.exists():
        return
    try:
        if not file.is_file():
            raise ValueError(f"{file} is no regular file")
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as opened:
            rows = opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{file} is no database of a search: {error}") from error
    tables = {name for (name,) in rows}
    if tables and "studies" not in tables:
        raise ValueError(
            f"{file} is a database of another program, with {', '.join(sorted(tables)[:5])}: take "
            "another storage"
        )


def open_study(url: str, name: str) -> Any:
    """The study of this name; several processes may make it at once."""
    import optuna
    from sqlalchemy.exc import ArgumentError

    waits = {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None
    for attempt in itertools.count():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                database = optuna.storages.RDBStorage(
                    url, waits, heartbeat_interval=HEARTBEAT, grace_period=GRACE
                )
            if waits is not None:
                _lock_at_begin(database.engine)
            return optuna.create_study(
                storage=database, study_name=name, direction="maximize", load_if_exists=True
            )
        except (ArgumentError, ImportError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"the database of the search can't be opened: {reason}") from error
        except storage_errors() as error:  # tables that another process just made
            if attempt == 4:
                reason = reason_of(error)
                raise ValueError(f"the database of the search can't be opened: {reason}") from error
            time.sleep(0.2 * (attempt + 1))


def _lock_at_begin(engine: Any) -> None:
    """SQLite's transactions take the lock when they begin; else two processes take one trial."""
    from sqlalchemy import event

    engine.dispose()  # connections that began otherwise
    event.listen(engine, "connect", lambda conn, _: setattr(conn, "isolation_level", None))
    event.listen(engine, "begin", lambda conn: conn.exec_driver_sql("BEGIN IMMEDIATE"))
