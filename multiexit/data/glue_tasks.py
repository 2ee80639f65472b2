"""GLUE's seven classification tasks that the paper uses, and STS-B: columns, classes, metric.

Wang et al., "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding", ICLR 2019. WNLI is left out, as in LeeBERT, section 4.1.
"""

from dataclasses import dataclass

from multiexit.arguments import unknown
from multiexit.data.sources import canonical


@dataclass(frozen=True)
class GlueTask:
    """One task of GLUE.

    Args:
        name: as the hub spells it, `"mrpc"`.
        folder: as the classic TSV distribution spells it, `"MRPC"`.
        columns: the hub's name of the text column, or of both.
        labels: the classes in the order of their numbers, None for STS-B's scores from 0 to 5.
        metric: `"accuracy"`, `"accuracy_f1"`, `"matthews"` or `"pearson_spearman"`.
        tsv_columns: the TSV header's names of the same columns.
        tsv_label: the TSV header's name of the label column.
        tsv_values: how the TSV writes the classes, in the order of `labels`; empty for scores.
    """

    name: str
    folder: str
    columns: tuple[str, ...]
    labels: tuple[str, ...] | None
    metric: str
    tsv_columns: tuple[str, ...]
    tsv_label: str
    tsv_values: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """The number of outputs that a network needs: one per class, 1 for regression."""
        return len(self.labels) if self.labels else 1


_PAIR = ("sentence1", "sentence2")
_DIGITS = ("0", "1")
_RTE = ("entailment", "not_entailment")
_MNLI = ("entailment", "neutral", "contradiction")

_ALL = (
    GlueTask(
        name="cola",
        folder="CoLA",
        columns=("sentence",),
        labels=("unacceptable", "acceptable"),
        metric="matthews",
        tsv_columns=("sentence",),
        tsv_label="label",
        tsv_values=_DIGITS,
    ),
    GlueTask(
        name="sst2",
        folder="SST-2",
        columns=("sentence",),
        labels=("negative", "positive"),
        metric="accuracy",
        tsv_columns=("sentence",),
        tsv_label="label",
        tsv_values=_DIGITS,
    ),
    GlueTask(
        name="mrpc",
        folder="MRPC",
        columns=_PAIR,
        labels=("not_equivalent", "equivalent"),
        metric="accuracy_f1",
        tsv_columns=("#1 String", "#2 String"),
        tsv_label="Quality",
        tsv_values=_DIGITS,
    ),
    GlueTask(
        name="stsb",
        folder="STS-B",
        columns=_PAIR,
        labels=None,
        metric="pearson_spearman",
        tsv_columns=_PAIR,
        tsv_label="score",
        tsv_values=(),
    ),
    GlueTask(
        name="qqp",
        folder="QQP",
        columns=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        metric="accuracy_f1",
        tsv_columns=("question1", "question2"),
        tsv_label="is_duplicate",
        tsv_values=_DIGITS,
    ),
    GlueTask(
        name="mnli",
        folder="MNLI",
        columns=("premise", "hypothesis"),
        labels=_MNLI,
        metric="accuracy",
        tsv_columns=_PAIR,
        tsv_label="gold_label",
        tsv_values=_MNLI,
    ),
    GlueTask(
        name="qnli",
        folder="QNLI",
        columns=("question", "sentence"),
        labels=_RTE,
        metric="accuracy",
        tsv_columns=("question", "sentence"),
        tsv_label="label",
        tsv_values=_RTE,
    ),
    GlueTask(
        name="rte",
        folder="RTE",
        columns=_PAIR,
        labels=_RTE,
        metric="accuracy",
        tsv_columns=_PAIR,
        tsv_label="label",
        tsv_values=_RTE,
    ),
)

TASKS: dict[str, GlueTask] = {task.name: task for task in _ALL}
"""The tasks by their hub names."""


def find_task(name: str) -> GlueTask:
    """The task of that name; `"SST-2"`, `"sst2"` and `"sst_2"` are the same.

    Raises:
        ValueError: no such task; the message lists those that there are.
    """
    key = canonical(name)
    if key not in TASKS:
        raise unknown("GLUE task", name, TASKS)
    return TASKS[key]
