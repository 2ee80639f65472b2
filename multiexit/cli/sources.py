"""The data that a command reads: a task by its name, or a user's own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from multiexit.arguments import unknown
from multiexit.cli import typed
from multiexit.cli.row_options import ModelRows, TrainingRows

if TYPE_CHECKING:
    from multiexit.data.own.finding import Found
    from multiexit.data.own.targets import Targets
    from multiexit.data.tasks import TaskData

COLUMNS = ("text", "text_pair", "image", "label")
"""Options that name the columns of a user's own data."""

SOURCES = ("data", "validation", "test")
"""What a run remembers of where its own data lies."""

SKIPPED = "skipped.jsonl"
"""The file of rows that were left out, in a run's folder."""


@dataclass(frozen=True)
class Source:
    """Data that was found, and is not read yet.

    Args:
        name: of the task; of a user's own data `"text"` or `"image"`.
        kind: `"text"` or `"image"`.
        rows: as they were typed.
        download: of a task by its name.
        normalisation: of images.
        own: a user's data.
        options: of how that is read.
    """

    name: str
    kind: str
    rows: TrainingRows
    download: bool
    normalisation: str | None
    own: "Found | None"
    options: dict[str, Any]

    def load(
        self,
        tokenizer: Any,
        folder: Path,
        check: Callable[[int, str | None], None] = lambda num_classes, problem: None,
        preparation: dict[str, Any] | None = None,
    ) -> "TaskData":
        """Read the data.

        Args:
            tokenizer: of texts.
            folder: of the run; rows that can't be used and are to be left out are written there.
            check: is told how many classes there are, and the problem, as soon as they are known.
            preparation: of images of a user's own; None is ImageNet's.

        Raises:
            ValueError: rows that can't be used, or a metric that can't judge them.
        """
        from multiexit.data import tasks
        from multiexit.data.own.loading import Reading, task_of
        from multiexit.evaluation import metrics

        def check_all(num_classes: int, problem: str | None) -> None:
            metrics.fitting(rows.metric, num_classes, problem)
            check(num_classes, problem)

        rows, length = self.rows, self.rows.max_length
        if self.own is None:
            read = tasks.load(
                self.name, rows.data_dir, tokenizer, length, self.normalisation, self.download
            )
            check_all(read.num_classes, read.problem)
        else:
            skipped = folder / SKIPPED if rows.skip_bad else None
            options = self.options if length is None else {**self.options, "max_length": length}
            reading = Reading(skip_bad=skipped, check=check_all, preparation=preparation, **options)
            read = task_of(self.own, tokenizer, reading)
        return judged_by(rows.metric, read)


def judged_by(metric: str | None, task: "TaskData") -> "TaskData":
    """The same data, with another metric than its own, which models that learn from it remember."""
    if metric is None:
        return task
    return replace(task, metric=metric, preprocessing={**task.preprocessing, "metric": metric})


def find(rows: TrainingRows, seed: int = 0, **others: Any) -> Source:
    """Find what a command is to read.

    Args:
        rows: as typed.
        seed: of the split, where one is drawn.
        others: options that some tasks take; see `multiexit.data.tasks.check_options`.

    Raises:
        ValueError: neither or both, an option that is for the other, no such data.
    """
    from multiexit.data import tasks
    from multiexit.data.own.finding import find as find_own
    from multiexit.evaluation.metrics import METRICS

    if rows.metric is not None and rows.metric not in METRICS:
        raise ValueError(unknown("metric", rows.metric, METRICS))
    task, data, given = rows.task, rows.data, rows.of_own_data
    others |= {"data_dir": rows.data_dir, "max_length": rows.max_length}
    if (task is None) == (data is None):
        raise ValueError(
            "give --task, the name of a data set, or --data, a file or folder of your own"
            + ("" if task is None else ", not both")
        )
    if task is not None:
        if given:
            raise ValueError(
                f"{next(iter(given))} is for data of your own, by --data: leave it out"
            )
        tasks.check_options(task, **others)
        download, normalisation = bool(others.get("download")), others.get("normalisation")
        return Source(task, tasks.modality(task), rows, download, normalisation, None, {})
    columns: dict[str, Any] = {name: given.get(name) for name in COLUMNS}
    if columns["label"] is not None and len(columns["label"]) == 1:
        columns["label"] = columns["label"][0]
    own = find_own(
        data, validation=given.get("validation_data"), test=given.get("test_data"), **columns
    )
    image_options = {"image_size": "size", "augment": "augment"}
    for name in image_options:
        if name in given and own.kind != "image":
            raise ValueError(f"{name} is for images, and these are texts: leave it out")
    tasks.check_options(own.kind, **others)
    reading = {new: given[name] for name, new in image_options.items() if name in given}
    if "problem" in given:
        reading["problem"] = given["problem"]
    normalisation = others.get("normalisation")
    if normalisation not in (None, "imagenet"):
        raise unknown("normalisation", normalisation, ["imagenet"])
    return Source(own.kind, own.kind, rows, False, normalisation, own, {**reading, "seed": seed})


def load(folder: Path, rows: ModelRows) -> tuple[Any, Any]:
    """A saved model and the data to judge it on: by default what it was trained on.

    Args:
        folder: of the model, or of its run.
        rows: as typed. All rows of `--data` are judged on; its columns are those of training where
            they aren't named; bad rows that are left out are written beside the model.

    Raises:
        ValueError: options that don't go together, or rows that the model can't be judged on.
    """
    from multiexit import MultiExitModel

    folder = typed.model_folder(folder)
    model = MultiExitModel.from_pretrained(folder).to(typed.device())
    return model, rows_for(model, folder, rows)


def rows_for(model: Any, folder: Path, rows: ModelRows) -> "TaskData":
    """The data to judge a model on, as `load` reads it.

    Args:
        model: that is saved there.
        folder: of the model.
        rows: as typed.

    Raises:
        ValueError: as `load` does.
    """
    return judged_by(model.preprocessing.get("metric"), _rows_for(model, folder, rows))


def _rows_for(model: Any, folder: Path, rows: ModelRows) -> "TaskData":
    from multiexit.data import tasks

    preprocessing = model.preprocessing
    if model.problem == "token-classification":
        raise ValueError(
            f"{folder} answers each token, and the rows that commands read have one answer: judge "
            "it in Python, multiexit.collect(model, rows)"
        )
    data, task = rows.data, rows.task
    if data is not None and (task is not None or rows.data_dir is not None):
        raise ValueError("--data names the rows: leave out --task and --data-dir")
    if data is None and rows.columns:
        raise ValueError("columns are of data of your own: name it by --data")
    trained_on = None if task is not None else preprocessing.get("data")
    if trained_on is not None and rows.data_dir is not None:
        raise ValueError(
            f"--data-dir {rows.data_dir} is of a task by its name, and {folder} was trained on "
            "data of your own: leave it out, or name other rows by --data or --task"
        )
    if data is not None or trained_on is not None:
        return _own(model, folder, trained_on or {}, rows)
    if rows.skip_bad:
        raise ValueError("--skip-bad is for data of your own: leave it out")
    name = task or preprocessing.get("task")
    if name is None:
        raise ValueError(
            f"{folder} doesn't say what it was trained on: pass --task, or --data with your own"
        )
    tasks.check_options(name, data_dir=rows.data_dir)
    modality = tasks.modality(name)
    reader = typed.tokenizer(folder) if modality == "text" else None
    defaults = preprocessing if preprocessing.get("kind") == modality else {}
    max_length, normalisation = defaults.get("max_length"), defaults.get("normalisation")
    read = tasks.load(name, rows.data_dir, reader, max_length, normalisation)
    if read.num_classes != model.num_classes:
        raise ValueError(f"{name} has {read.num_classes} classes, the model {model.num_classes}")
    return read


def _own(model: Any, folder: Path, trained_on: dict[str, Any], rows: ModelRows) -> Any:
    """A user's own data for a model: other data, or what it was trained on."""
    from multiexit.data.own import finding, loading, targets
    from multiexit.data.own.notes import say

    how, data = model.preprocessing, rows.data
    named = {name: trained_on.get(name) for name in COLUMNS} | rows.columns
    if data is None and not {"data"} <= trained_on.keys():
        raise ValueError(f"{folder} was trained on rows in memory: name others by --data")
    places = {"data": data} if data else {k: trained_on.get(k) for k in SOURCES}
    draws = {k: trained_on[k] for k in ("share", "seed") if not data and k in trained_on}
    for place in () if data else filter(None, places.values()):
        if Path(place).is_absolute() and not Path(place).exists():  # a set on the hub has no path
            raise ValueError(
                f"{folder} was trained on {place}, which isn't there any more: put it back, or "
                "name rows by --data, all of which are then judged on"
            )
    found = finding.find(**places, **named)  # type: ignore[arg-type]
    if found.kind != how.get("kind"):
        raise ValueError(f"{data} holds {found.kind}s, and the model reads {how.get('kind')}s")
    goal = targets.given(model.labels, model.num_classes, model.problem)
    skipped = folder.parent / (f"{found.name}.{SKIPPED}" if data else SKIPPED)
    skips = rows.skip_bad or (not data and trained_on.get("skip_bad", False))
    reading = loading.Reading(
        max_length=how.get("max_length", 128), skip_bad=skipped if skips else None, **draws
    )
    trained = loading.Trained(
        goal,
        how if found.kind == "image" else None,
        draw=data is None,
        drawn_from=None if data else trained_on.get("drawn_from"),
    )
    reader = typed.tokenizer(folder) if found.kind == "text" else None
    read = loading.task_of(found, reader, reading, trained)
    if data is not None and (note := _learned_note(found, trained_on, goal)) is not None:
        say(note)
    return read


def _learned_note(found: "Found", trained_on: dict[str, Any], goal: "Targets") -> str | None:
    """What to say where rows may be among those that the model learned from."""
    from multiexit.data.own import finding, overlap

    source = trained_on.get("data")
    if source is None:
        return None
    try:
        if not Path(source).exists():
            raise ValueError(f"{source} isn't here")
        places = {name: trained_on.get(name) for name in (*SOURCES, *COLUMNS)}
        trained = finding.find(**places, notes=lambda note: None)  # type: ignore[arg-type]
        draw = {k: v for k in ("share", "seed", "drawn_from") if (v := trained_on.get(k))}
        learned, rows = overlap.rows_learned_from(found, trained, goal, **draw)
    except (ValueError, OSError) as error:
        return f"whether the model was trained on rows of {found.name} can't be told: {error}"
    if not learned:
        return None
    return (
        f"{learned} of {rows} rows of {found.name} are among those that the model was trained on: "
        "scores on new rows may be lower"
    )
