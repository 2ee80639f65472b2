"""Which rows a command reads, as it is typed: the options of data, each in one place."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from multiexit.cli import panels

Text = Annotated[str | None, panels.data(help="of --data: the column of texts")]
TextPair = Annotated[str | None, panels.data(help="of --data: the column of second texts")]
Image = Annotated[str | None, panels.data(help="of --data: the column of image files")]
Label = Annotated[
    list[str] | None,
    panels.data(help="of --data: the column of labels; repeated, columns of yes and no"),
]
SkipBad = Annotated[
    bool, panels.data("--skip-bad", help="of --data: leave bad rows out, and write them aside")
]
DataDir = Annotated[
    Path | None,
    panels.data(help="where the data lies; else GLUE comes from the hub, CIFAR from ~/.cache"),
]


@dataclass(frozen=True)
class TrainingRows:
    """What a network is trained on: a task by its name, or a user's own data.

    Where nothing was typed, an option is None, or False.
    """

    task: Annotated[
        str | None, panels.data(help="a GLUE task (mrpc, sst2, …), cifar10, cifar100 or digits")
    ] = None
    data: Annotated[
        str | None,
        panels.data(
            help="your own: a CSV, TSV, JSONL or parquet file, a folder of train, validation and "
            "test, a folder of images per class, or a hub data set"
        ),
    ] = None
    text: Text = None
    text_pair: TextPair = None
    image: Image = None
    label: Label = None
    problem: Annotated[
        str | None, panels.data(help="of --data: classification, regression or multi-label")
    ] = None
    validation_data: Annotated[str | None, panels.data(help="a file, beside --data")] = None
    test_data: Annotated[str | None, panels.data(help="a file, beside --data")] = None
    image_size: Annotated[
        int | None, panels.data(min=8, help="of --data: pixels; default: the network's, or 224")
    ] = None
    augment: Annotated[
        str | None,
        panels.data(help="of --data: crop (the default), randaugment, trivialaugment or none"),
    ] = None
    skip_bad: SkipBad = False
    metric: Annotated[
        str | None,
        panels.data(
            help="the score that selects the epoch and that is reported: accuracy, accuracy_f1 or "
            "matthews; of several labels micro_f1 or subset_accuracy; of numbers pearson_spearman "
            "or r2; default: the task's own, of --data the first"
        ),
    ] = None
    data_dir: DataDir = None
    max_length: Annotated[
        int | None, panels.data(min=1, help="of text, tokens per row at most; default 128")
    ] = None

    @property
    def of_own_data(self) -> dict[str, Any]:
        """What was typed of options that are for a user's own data alone, but for `data`."""
        tasks = ("task", "data", "metric", "data_dir", "max_length")
        return {name: value for name, value in vars(self).items() if value and name not in tasks}


@dataclass(frozen=True)
class ModelRows:
    """What a trained model is run on; if nothing was typed, what it was trained on."""

    task: Annotated[str | None, panels.data(help="default: what the model was trained on")] = None
    data: Annotated[
        str | None, panels.data(help="a file of your own to judge on; default: as in training")
    ] = None
    text: Text = None
    text_pair: TextPair = None
    image: Image = None
    label: Label = None
    skip_bad: SkipBad = False
    data_dir: DataDir = None

    @property
    def columns(self) -> dict[str, Any]:
        """The columns that were typed."""
        names = ("text", "text_pair", "image", "label")
        return {name: value for name in names if (value := getattr(self, name))}
