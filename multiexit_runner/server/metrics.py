"""What a service counts, for Prometheus."""

from collections.abc import Callable, Iterator
from functools import partial
from math import nan

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric

from multiexit_runner.server.dial import Setting
from multiexit_runner.server.network import Left

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class _Registry(CollectorRegistry):
    """A registry without the times at which its counters began, a line for each of theirs.

    prometheus_client leaves them out of all registries of a process, or of none.
    """

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [each for each in metric.samples if not each.name.endswith("_created")]
            yield metric


class Metrics:
    """Counters of one service, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = _Registry()
        self.requests = Counter(
            "multiexit_requests", "Requests, by status", ["status"], registry=registry
        )
        self.request_seconds = Histogram(
            "multiexit_request_seconds", "Of answered requests (status 200), from head to answer",
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.rows = Counter(
            "multiexit_rows", "Rows that left, by exit and why", ["exit", "why"], registry=registry
        )
        self.segment_seconds = Histogram(
            "multiexit_segment_seconds", "Time of a segment, by exit", ["exit"], buckets=SECONDS,
            registry=registry,
        )  # fmt: skip
        self.batch_rows = Histogram(
            "multiexit_batch_rows", "Rows of a segment, by exit", ["exit"], buckets=ROWS,
            registry=registry,
        )  # fmt: skip
        self.layers_run = Counter(
            "multiexit_layers_run", "Layers that were run, times rows", registry=registry
        )
        self.layers_saved = Counter(
            "multiexit_layers_saved", "Layers that were skipped, times rows", registry=registry
        )
        self.shed = Counter(
            "multiexit_shed_requests", "Requests refused to keep target_ms", registry=registry
        )
        self.queue = Gauge("multiexit_queue_rows", "Rows on their way", registry=registry)
        self.number = Gauge(
            "multiexit_policy_number", "Numbers of the policy of requests without one", ["name"],
            registry=registry,
        )  # fmt: skip
        self.certified = Gauge(
            "multiexit_certificate_valid", "1 while answers are under the certificate",
            registry=registry,
        )  # fmt: skip
        self.evidence = Gauge(
            "multiexit_drift_evidence", "Of drift since calibration; an alarm at 1/drift_alpha",
            registry=registry,
        )  # fmt: skip
        self.alarm = Gauge(
            "multiexit_drift_alarm", "1 once rows left otherwise than at calibration",
            registry=registry,
        )  # fmt: skip

    def turned(self, setting: Callable[[], Setting], holds: Callable[[], bool]) -> None:
        """Show what is expected of the setting in force, where nothing else makes rows leave; NaN
        once the table no longer holds."""

        def now(field: str) -> float:
            return getattr(setting(), field) if holds() else nan

        for name, field, words in (
            ("score", "score", "Now, as observed at calibration: a share such as 0.84"),
            ("layers", "mean_layers", "Per row, now"),
            ("loss_bound", "loss_bound", "Now, a share: 0.005 is half a point"),
        ):
            if getattr(setting(), field) is not None:
                what = f"{words}; of rows without max_exit or budget_ms"
                gauge = Gauge(f"multiexit_expected_{name}", what, registry=self.registry)
                gauge.set_function(partial(now, field))

    def on_request(self, status: int, seconds: float) -> None:
        """A request was answered, or refused: what takes no time must not look like speed."""
        self.requests.labels(status).inc()
        if status == 200:
            self.request_seconds.observe(seconds)

    def on_left(self, left: Left, run: int, layers: int) -> None:
        """A row left after so many of all layers."""
        self.rows.labels(left.exit, left.why).inc()
        self.layers_run.inc(run)
        if left.answer_C is not None:  # nothing is saved on those that nobody waited for
            self.layers_saved.inc(layers - run)

    def on_run(self, exit: int, rows: int, seconds: float) -> None:
        """A segment was run."""
        self.segment_seconds.labels(exit).observe(seconds)
        self.batch_rows.labels(exit).observe(rows)
