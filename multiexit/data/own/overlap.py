"""How many rows of a user's data a model was trained on."""

import numpy as np

from multiexit.data import splits
from multiexit.data.own import image_sets, rows
from multiexit.data.own.bad_rows import BadRows
from multiexit.data.own.finding import Found
from multiexit.data.own.rows import Rows
from multiexit.data.own.targets import Targets


def rows_learned_from(
    found: Found,
    trained: Found,
    goal: Targets,
    share: float = 0.2,
    seed: int = 0,
    drawn_from: str | None = None,
) -> tuple[int, int]:
    """How many rows are among those that a model learned from, and how many there are.

    Texts are the same if they are written the same; images if their files hold the same. Rows that
    were drawn for a validation set don't count, unless the training data has changed since.

    Args:
        found: the rows to count.
        trained: what the model was trained on.
        goal: the model's targets.
        share, seed, drawn_from: of the validation set's draw, as for
            `multiexit.data.own.loading.task_of`.
    """
    training = _read(trained, "train", goal)
    learned = training.keys
    if list(trained.tables) == ["train"] and drawn_from == training.fingerprint():
        learned = learned[splits.draw(training.labels, share, seed)[0].numpy()]
    these = np.concatenate([_read(found, split, goal).keys for split in found.tables])
    return int(np.isin(these, learned).sum()), len(these)


def _read(found: Found, split: str, goal: Targets) -> Rows:
    """A split's rows; those that can't be used are left out."""
    how = image_sets.preparation(224) if found.kind == "image" else None
    return rows.read(found.tables[split], found.columns, goal, BadRows(), how)
