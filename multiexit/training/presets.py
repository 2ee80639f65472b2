"""Settings to start from, the papers' own where these serve: `replace(glue("mrpc"), epochs=3)`."""

from typing import NamedTuple

from multiexit.arguments import unknown
from multiexit.data.sources import canonical
from multiexit.training.config import TrainConfig


class Table3(NamedTuple):
    """A row of LeeBERT's Table 3.

    Args:
        lr: λ1, Θ's learning rate.
        omega_lr: λ2, Ω's learning rate.
        batch_size: rows per step.
        cycle: C, the cross-level cycle's length in steps.

    Example:
        >>> import multiexit as mx
        >>> mx.presets.TABLE_3["mrpc"]
        Table3(lr=1e-05, omega_lr=0.0001, batch_size=32, cycle=4)
    """

    lr: float
    omega_lr: float
    batch_size: int
    cycle: int


TABLE_3 = {
    "cola": Table3(2e-5, 1e-3, 16, 2),
    "mnli": Table3(1e-5, 1e-5, 128, 4),
    "mrpc": Table3(1e-5, 1e-4, 32, 4),
    "qnli": Table3(1e-5, 1e-5, 128, 8),
    "qqp": Table3(1e-5, 1e-5, 128, 4),
    "rte": Table3(2e-5, 1e-3, 16, 4),
    "sst2": Table3(2e-5, 1e-4, 128, 4),
}
"""LeeBERT, appendix B, for BERT-base and ALBERT-base. STS-B is not in it."""


CIFAR_SCHEDULES = ("strong", "appendix-f", "fine-tune")


def glue(task: str, letter: bool = False) -> TrainConfig:
    """AdamW on a line down to 0 in 5 epochs, with Table 3's rate of Θ and batch size.

    Adam moves a logit of Ω by λ2 a step at most. With the table's λ2 that is 0.02 (QNLI) to 1.3
    (CoLA) in a whole run, and on most tasks learned weights stay uniform. So λ2 is here left to
    `TrainConfig`, which lets logits move by 2. A run stops after 2 epochs without a better one.

    Small encoders want a larger rate: 5e-5 … 2e-4 for MiniLM.

    Args:
        task: of GLUE, in any spelling; one that isn't in the table, such as STS-B, has RTE's row.
        letter: λ2 of the table, and the paper's patience of 5 epochs, of 10, since it names none.

    Example:
        >>> from dataclasses import replace
        >>> import multiexit as mx
        >>> config = replace(mx.presets.glue("MRPC"), epochs=3)
        >>> config.lr, config.batch_size, config.epochs
        (1e-05, 32, 3)
        >>> mx.presets.glue("MRPC", letter=True).omega_lr
        0.0001
    """
    name = canonical(task)
    row = TABLE_3.get(name, TABLE_3["rte"])
    if letter:
        return TrainConfig(10, lr=row.lr, omega_lr=row.omega_lr, batch_size=row.batch_size)
    return TrainConfig(5, lr=row.lr, batch_size=row.batch_size, early_stopping=2)


def texts(width: int = 384) -> TrainConfig:
    """AdamW on a line down to 0, batch 16, 5 epochs: early exits on a few hundred texts or more.

    A run stops after 2 epochs without a better one.

    The rate is 1e-4 up to width 384 (MiniLM) and falls as 1 / width beyond: 5e-5 for BERT-base,
    the largest of its paper's. With the papers' rates for GLUE early exits of so few rows stay at
    chance.

    Args:
        width: H, of the network's tokens.

    Example:
        >>> import multiexit as mx
        >>> mx.presets.texts().lr, mx.presets.texts(width=768).lr
        (0.0001, 5e-05)
    """
    lr = 1e-4 * min(1.0, 384 / width)
    return TrainConfig(epochs=5, lr=lr, batch_size=16, early_stopping=2)


def images() -> TrainConfig:
    """AdamW at 5e-4 on a cosine, batch 64, 10 epochs: to fine-tune a pretrained network.

    Example:
        >>> import multiexit as mx
        >>> mx.presets.images().lr
        0.0005
    """
    return TrainConfig(epochs=10, batch_size=64, lr=5e-4, weight_decay=0.05, schedule="cosine")


def cifar(schedule: str = "strong", epochs: int | None = None) -> TrainConfig:
    """SGD, batch 128, λ2 = 0.01 (LeeBERT, appendix F), with one of three schedules.

    Args:
        schedule: `"strong"`: 200 epochs at 0.1, ×0.1 at 1/2 and 3/4 (He et al. 2016).
            `"appendix-f"`: 100 epochs at 0.1, ×0.1 at 35, 60 and 85 %, which is Shallow-Deep's; the
            paper gives none, so this is inferred. `"fine-tune"`: 20 epochs at 0.01 on a cosine, for
            exits on a network that is trained already, which 0.1 would undo.
        epochs: another length; the milestones keep their shares.

    Raises:
        ValueError: another schedule.

    Example:
        >>> import multiexit as mx
        >>> config = mx.presets.cifar("appendix-f")
        >>> config.epochs, config.milestones
        (100, (0.35, 0.6, 0.85))
    """
    if schedule not in CIFAR_SCHEDULES:
        raise unknown("schedule", schedule, CIFAR_SCHEDULES)
    length = {"strong": 200, "appendix-f": 100, "fine-tune": 20}[schedule]
    trained = schedule == "fine-tune"
    return TrainConfig(
        epochs=epochs or length,
        batch_size=128,
        lr=0.01 if trained else 0.1,
        omega_lr=0.01,
        optimizer="sgd",
        weight_decay=1e-4,
        schedule="cosine" if trained else "step",
        milestones=(0.35, 0.6, 0.85) if schedule == "appendix-f" else (0.5, 0.75),
        warmup=0.0,
        clip=None,
        early_stopping=None,
    )
