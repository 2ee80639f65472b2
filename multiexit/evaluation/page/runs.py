"""What lies in a run's folder, for a page."""

from pathlib import Path
from typing import Any, NamedTuple

from multiexit.evaluation import card, examples
from multiexit.evaluation.history import History
from multiexit.evaluation.results import read_results
from multiexit.files.json_files import read_table
from multiexit.files.names import HISTORY, MODEL, RESULTS, RUN
from multiexit.model.folder import SETTINGS
from multiexit.model.settings import read_settings


class Run(NamedTuple):
    """A run's results on one set.

    Args:
        path: of its folder.
        title: of the run.
        results: from `results_json`.
        examples: from `examples_json`, or None.
        history: of the training, or None.
        model: what `multiexit.evaluation.card.facts` says of the model as it is now; None where
            it doesn't lie beside.
    """

    path: Path
    title: str
    results: dict[str, Any]
    examples: dict[str, Any] | None
    history: History | None
    model: dict[str, str | None] | None = None


def read(folder: Path) -> list[Run]:
    """The runs in a folder: itself, or those in the folders right below it.

    Several sets (MNLI's two) and several seeds lie below.

    Raises:
        ValueError: there is none, or a file is damaged, by its name.
    """
    places = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
    found = [place for place in places if (place / RESULTS).exists()]
    if not found:
        hint = "name the folder of a run"
        if (folder / RUN).exists():
            hint = (
                "`multiexit train` writes it at a run's end: let it end, go on with it by "
                "--resume, or judge its model by `multiexit evaluate`"
            )
        raise ValueError(f"{folder} holds no {RESULTS}: {hint}")
    return [_one(place, folder) for place in (found[:1] if found[0] == folder else found)]


def _one(place: Path, folder: Path) -> Run:
    results = read_results(place / RESULTS)
    some = None
    if (place / examples.NAME).exists():
        some = read_table(
            place / examples.NAME, "examples of a run", examples.TABLE, format=examples.FORMAT
        )
    histories = [path for path in (place, folder) if (path / HISTORY).exists()]
    history = History.load(histories[0] / HISTORY) if histories else None
    about = results.get("about")
    title = about.get("title") if isinstance(about, dict) else None
    models = [path / MODEL / SETTINGS for path in (place, folder, place.parent)]
    kept = next((card.facts(read_settings(path)) for path in models if path.is_file()), None)
    return Run(place, str(title or place.name), results, some, history, kept)
