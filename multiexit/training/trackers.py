"""What a run tells TensorBoard, W&B, MLflow and whatever else accelerate knows.

Letters: M exits.
"""

from typing import Any

from accelerate import Accelerator

from multiexit.evaluation import metrics
from multiexit.training.callbacks import Callback, Run


class Trackers(Callback):
    """Logs a run's settings, and its losses, rates, Ω and scores, with accelerate's trackers.

    Args:
        accelerator: with the run's trackers, of which the first process has any.
    """

    def __init__(self, accelerator: Accelerator):
        self._accelerator = accelerator

    def on_begin(self, run: Run) -> None:
        if not self._accelerator.trackers:
            name = str(run.config.output)
            self._accelerator.init_trackers(
                "multiexit",
                config=settings(run),
                init_kwargs={"wandb": {"name": name}, "mlflow": {"run_name": name}},
            )

    def on_step(self, run: Run, row: dict[str, Any] | None) -> None:
        if row is not None and self._accelerator.trackers:
            self._accelerator.log(of_step(row), step=run.position.total)

    def on_evaluate(self, run: Run, row: dict[str, Any]) -> None:
        if "exits" in row and self._accelerator.trackers:
            self._accelerator.log(of_evaluation(row), step=run.position.total)

    def on_end(self, run: Run) -> None:
        for tracker in self._accelerator.trackers:  # end_training would end the group too
            tracker.finish()
        self._accelerator.trackers = []


def settings(run: Run) -> dict[str, str | int | float | bool]:
    """The recipe's name and the configuration, as values that every tracker takes."""
    metric = run.config.metric and metrics.name(run.config.metric)
    values = {"recipe": run.recipe.name, **vars(run.config), "metric": metric}
    plain = (str, int, float, bool)
    return {k: v if isinstance(v, plain) else str(v) for k, v in values.items()}


def of_step(row: dict[str, Any]) -> dict[str, float]:
    """A row of `history.steps` as figures by name.

    >>> of_step({"loss": 2.0, "lr": 0.1, "own_M": [1.5, 0.5], "W_MM": [[1.0, 0.3], [None, 1.0]]})
    ... # doctest: +NORMALIZE_WHITESPACE
    {'loss': 2.0, 'lr': 0.1, 'loss/exit 0': 1.5, 'loss/exit 1': 0.5,
     'omega/exit 0': 1.0, 'omega/exit 0 from exit 1': 0.3, 'omega/exit 1': 1.0}
    """
    own = {f"loss/exit {m}": loss for m, loss in enumerate(row.get("own_M", ()))}
    omega = {
        f"omega/exit {m}" + ("" if m == k else f" from exit {k}"): weight
        for m, weights in enumerate(row.get("W_MM", ()))
        for k, weight in enumerate(weights)
        if weight is not None
    }
    return {"loss": row["loss"], "lr": row["lr"], **own, **omega}


def of_evaluation(row: dict[str, Any]) -> dict[str, float]:
    """A row of `history.epochs` as figures by name.

    >>> of_evaluation({"exits": [{"score": 0.5}, {"score": 0.9}], "mean": 0.7})
    {'mean over exits': 0.7, 'score/exit 0': 0.5, 'score/exit 1': 0.9}
    """
    scores = {
        f"{name}/exit {m}": score
        for m, figures in enumerate(row["exits"])
        for name, score in figures.items()
    }
    return {"mean over exits": row["mean"], **scores}
