"""Settings that follow the load: on a network of numbers whose clock its runs turn."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multiexit_runner.server.budget import RATE, BudgetDial
from multiexit_runner.server.dial import LoadDial, Setting, Shed
from multiexit_runner.server.network import Outcome, Row
from multiexit_runner.server.scheduler import Scheduler

M, S, TARGET = 6, 16, 0.1


def setting(place: int) -> Setting:
    """At each exit the same share of those that come leaves; it grows from 0 to 3/4."""
    share = 0.75 * place / (S - 1)
    shares_M = [share * (1 - share) ** m for m in range(M - 1)]
    shares_M.append(1 - sum(shares_M))
    layers = sum((m + 1) * each for m, each in enumerate(shares_M))
    policy = np.cumsum(shares_M)[:-1]
    return Setting(policy, str(place), 0.9 - 0.005 * place, 0.01 * place, layers, shares_M)


SETTINGS = [setting(place) for place in range(S)]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Numbers:
    """Rows are numbers in 0..1; one leaves where its setting's shares have come to it."""

    num_exits = M

    def __init__(self, clock, fixed, per_row):
        self.clock, self.fixed, self.per_row = clock, fixed, per_row

    def length(self, item):
        return 0

    def first(self, items, policies):
        pairs = zip(items, policies, strict=True)
        return np.array([np.searchsorted(policy, item) for item, policy in pairs])

    def run(self, exit, group):
        self.clock.now += self.fixed + self.per_row * len(group)
        return Outcome(group[:, None], (group <= exit) | (exit == M - 1), {}, group)

    def take(self, group, keep_B):
        return group[keep_B]

    def merge(self, groups):
        return np.concatenate(groups)

    def shape_key(self, group):
        return None


class Seen(NamedTuple):
    """A request: when it came, its setting (None where it was shed), and its seconds."""

    came: float
    place: int | None
    seconds: float


def served(
    arrivals: Sequence[float], fixed=0.001, per_row=0.001, sizes=(1,), seed=0, dial=None
) -> list[Seen]:
    """Requests that come at these times."""
    clock, draw = Clock(), np.random.default_rng(seed)
    dial = dial or LoadDial(SETTINGS, TARGET)
    dial._clock = clock
    network = Numbers(clock, fixed, per_row)
    scheduler = Scheduler(network, 32, 0.0, 10**6, clock=clock, on_run=dial.ran)
    seen, waiting = [], list(arrivals)[::-1]

    def come(came: float) -> None:
        rows = int(draw.choice(sizes))
        try:
            entry = dial.enter(rows)
        except Shed:
            seen.append(Seen(came, None, 0.0))
            return
        answered = []

        def done(left):
            dial.left(entry, left.exit + 1, left.run_seconds)
            answered.append(left)
            if len(answered) == rows:
                seen.append(Seen(came, entry.place, clock.now - came))
                dial.answered(entry, clock.now - came)

        policy = dial.settings[entry.place].policy
        scheduler.submit([Row(draw.random(), policy, done, M - 1) for _ in range(rows)])

    while waiting or scheduler.rows:
        if not scheduler.rows:
            clock.now = max(clock.now, waiting[-1])
        while waiting and waiting[-1] <= clock.now:
            come(waiting.pop())
        scheduler.step()
    return sorted(seen)


def poisson(*phases: tuple[float, float], seed=0) -> list[float]:
    """Times of requests: seconds and requests per second of each phase."""
    draw, times, start = np.random.default_rng(seed), [], 0.0
    for seconds, rate in phases:
        count = draw.poisson(rate * seconds)
        times += [*np.sort(start + seconds * draw.random(count))]
        start += seconds
    return times


def p95(seen: Sequence[Seen]) -> float:
    return float(np.quantile([each.seconds for each in seen if each.place is not None], 0.95))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([20, 100, 300, 600]), min_size=2, max_size=2),
    st.sampled_from([(0.001, 0.001), (0.0002, 0.002), (0.004, 0.0002)]),
    st.sampled_from([(1,), (1, 2, 8)]),
    st.integers(0, 100),
)
def test_whatever_the_load_95_percent_are_answered_in_time(rates, costs, sizes, seed):
    times = poisson(*[(1, rate) for rate in rates], seed=seed)
    seen = served(times, *costs, sizes=sizes, seed=seed)
    late_N = np.array([each.seconds > TARGET for each in seen if each.place is not None])
    scatter = (0.05 * 0.95 / len(late_N)) ** 0.5
    assert late_N.mean() <= 0.05 + 2 * scatter


def test_a_jump_is_followed_within_a_second_and_so_is_the_fall():
    seen = served(poisson((5, 40), (2, 400), (4, 40)))
    before = [each for each in seen if each.came < 5]
    jump = [each for each in seen if 5 <= each.came < 6]
    after = [each for each in seen if each.came >= 7.2]
    assert None not in {each.place for each in seen}  # nothing is shed: the fastest can do it
    assert np.mean([each.place for each in before]) < 1
    assert p95(jump) <= TARGET
    assert np.mean([each.place for each in jump[50:]]) > S / 2
    assert np.mean([each.place for each in after]) < 1


def test_at_a_steady_load_it_stands_still():
    """The load is more than the slowest setting can do, and less than the fastest can."""
    rate = 250
    seen = served([i / rate for i in range(6 * rate)])
    by_second = np.array([each.place for each in seen]).reshape(6, rate).mean(1)[1:]
    assert 2 < by_second.mean() < S - 2
    assert np.ptp(by_second) < 1


def test_it_sheds_where_the_fastest_cannot_do_it_and_no_more_than_that():
    seen = served(poisson((1.5, 1500)))
    late = [each for each in seen if each.came > 1]
    taken = [each for each in late if each.place is not None]
    assert p95(late) <= TARGET
    assert np.mean([each.place for each in taken]) > S - 2.5
    # A row of the fastest setting takes 1/r seconds; full batches take those that are taken.
    seconds = SETTINGS[-1].mean_layers * (0.001 + 0.001 / 32)
    assert len(taken) > 0.4 / seconds


def test_a_machine_that_stands_still_now_and_then_makes_settings_faster_and_sheds_nothing(
    monkeypatch,
):
    run = Numbers.run

    def and_stand_still(self, exit, group):
        before = self.clock.now
        outcome = run(self, exit, group)
        self.clock.now += 0.08 * (int(before) != int(self.clock.now))  # once a second
        return outcome

    monkeypatch.setattr(Numbers, "run", and_stand_still)
    seen = served(poisson((8, 100)))
    assert sum(each.place is None for each in seen) < 0.01 * len(seen)
    assert p95(seen) <= TARGET
    calm, later = (
        [each.place or 0 for each in seen if begun == (each.came > 1)] for begun in (0, 1)
    )
    assert np.mean(calm) < np.mean(later) < S / 2


@given(st.lists(st.integers(1, 40), max_size=30), st.floats(1e-4, 0.05), st.floats(0, 0.05))
def test_more_work_never_gives_a_slower_setting(requests, per_row, fixed):
    dial = LoadDial(SETTINGS, TARGET, Clock())
    for exit in range(M):
        dial.ran(exit, 4, fixed + 4 * per_row)
    idle, places, entries = dial.place, [], []
    for rows in requests:
        try:
            entries += [dial.enter(rows)] * rows
        except Shed:
            assert dial._rows_SK.any()
        places.append(dial.place)
    assert places == sorted(places)
    assert {idle, *places} <= {*range(S)}
    for entry in entries:
        dial.left(entry)
    assert dial.place == idle
    assert dial.enter(1).place == idle  # an idle service takes what comes


@given(
    st.floats(1e-4, 0.05),
    st.floats(1e-4, 0.05),
    st.lists(st.integers(1, 32), max_size=40),
    st.integers(1, 300),
    st.integers(0, 300),
)
def test_rows_that_come_together_are_reckoned_as_those_of_full_runs(
    fixed, per_row, last, rows, before
):
    """Whatever ran last, alone or together; runs of n rows take fixed + n·per_row."""
    deepest = SETTINGS[0]._replace(shares_M=[0.0] * (M - 1) + [1.0])
    dial = LoadDial([deepest], 1e9, Clock())
    for size in (1, 2, 4, 8, 16, 32, *last, *[1] * 100):
        for exit in range(M):
            dial.ran(exit, size, fixed + size * per_row)

    def seconds(rows):
        runs = [32] * (rows // 32) + [rows % 32] * (rows % 32 > 0)
        return M * sum(fixed + size * per_row for size in runs)

    if before:
        dial.enter(before)
    took = seconds(rows) + seconds(before)
    assert 0.5 * took <= dial.enter(rows).expected <= 2 * took * (1 + 1e-9)


def test_a_segment_that_was_slow_once_is_not_slow_for_ever():
    """The last one stood still, and at the setting that is then taken no row comes there."""
    deep = SETTINGS[0]._replace(shares_M=[0.0] * (M - 1) + [1.0])
    shallow = SETTINGS[-1]._replace(shares_M=[1.0] + [0.0] * (M - 1))
    dial = LoadDial([deep, shallow], TARGET)
    for exit in range(M):
        dial.ran(exit, 1, TARGET / 20)
    assert dial.place == 0
    dial.ran(M - 1, 1, 100 * TARGET)
    assert dial.place == 1
    for _ in range(1000):
        dial.ran(0, 1, TARGET / 20)
    assert dial.place == 0
    dial.ran(M - 1, 1, TARGET / 20)
    assert dial.place == 0


def test_rows_with_policies_of_their_own_are_counted_and_shed_but_not_turned():
    dial = LoadDial(SETTINGS, TARGET, Clock())
    for exit in range(M):
        dial.ran(exit, 1, 0.002)
    assert dial.enter(5, own=0).own
    assert dial.place > 0
    with pytest.raises(Shed, match=r"would take 132 ms now, more than the 90 ms .* 90% of the"):
        dial.enter(6, own=0)


def test_one_allowed_setting_is_never_left():
    seen = served(poisson((1, 50), (1, 500)), dial=LoadDial(SETTINGS[3:4], TARGET))
    assert {each.place for each in seen} == {0, None}
    assert p95(seen) <= TARGET


@given(
    st.lists(st.integers(1, M), min_size=1, max_size=400), st.floats(1.5, 5.5), st.integers(1, 200)
)
def test_a_budget_is_held_whatever_rows_come(layers, budget, together):
    layers = layers[: len(layers) // together * together] or layers[:together]
    together = min(together, len(layers))
    dial = BudgetDial(SETTINGS, budget)
    below, clipped = 2 * dial._layers_S.min() - dial._layers_S.max(), False
    for begin in range(0, len(layers), together):
        entry = dial.enter(together)
        for each in layers[begin : begin + together]:
            dial.left(entry, each)
            clipped |= dial.aim == below
    dial.left(dial.enter(1, own=0), M)  # of no account
    if not clipped:
        most = budget + (budget - dial.aim) / (min(RATE, 1 / together) * len(layers))
        assert np.mean(layers) <= most + 1e-9


@pytest.mark.parametrize("budget", [1.5, 2.0, 3.0, 5.0])
@pytest.mark.parametrize("together", [1, 64, 256])
def test_a_budget_is_held_with_requests_of_many_rows(budget, together):
    dial, draw = BudgetDial(SETTINGS, budget), np.random.default_rng(0)
    layers = []
    for _ in range(6144 // together):
        entry = dial.enter(together)
        exits = np.searchsorted(SETTINGS[entry.place].policy, draw.random(together))
        layers += list(np.minimum(exits, M - 1) + 1)
        for each in layers[-together:]:
            dial.left(entry, int(each))
    assert np.mean(layers) == pytest.approx(budget, abs=0.06)


def test_a_budget_is_held_under_drift():
    """Rows become harder than at calibration: they leave an exit later, where they can."""
    dial, draw = BudgetDial(SETTINGS, 3.0), np.random.default_rng(0)
    aims = []
    for late in (0, 1, 0):
        layers = []
        for _ in range(1500):
            entry = dial.enter(1)
            exit = int(np.searchsorted(SETTINGS[entry.place].policy, draw.random()))
            layers.append(min(exit + late, M - 1) + 1)
            dial.left(entry, layers[-1])
        assert np.mean(layers[300:]) == pytest.approx(3.0, abs=0.1)
        aims.append(dial.aim)
    assert aims[1] < min(aims[0], aims[2]) - 0.4


def test_a_budget_in_milliseconds_is_held_where_layers_become_slower():
    """Without a batch's fixed time a layer takes as long whatever the load is."""
    dial, means = BudgetDial(SETTINGS, 6.0, in_ms=True), []
    assert dial.place == 0
    for per_row in (0.002, 0.003, 0.0015):
        spent = []
        inner, dial.left = dial.left, lambda *left: (spent.append(left[2]), inner(*left))  # noqa: B023
        served(poisson((15, 60)), 0.0, per_row, dial=dial)
        dial.left = inner
        assert 1000 * np.mean(spent[300:]) == pytest.approx(6.0, abs=0.2)
        means.append(dial.aim)
    assert means[2] > means[0] > means[1]  # layers that it can afford
    dial.left(dial.enter(1, own=0), M, 1.0)  # of no account
    assert dial.aim == means[2]


def test_a_budget_in_milliseconds_that_no_setting_has_gets_the_fastest():
    dial = BudgetDial(SETTINGS, 0.1, in_ms=True)
    served(poisson((4, 100)), 0.0, 0.002, dial=dial)
    assert dial.place == S - 1


def test_a_budget_that_no_setting_has_is_refused():
    for budget in (1.0, 6.5):
        with pytest.raises(ValueError, match=r"budget_layers must be from 1.33 to 6.00"):
            BudgetDial(SETTINGS, budget)
