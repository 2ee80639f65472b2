"""Several seeds of a method: their statistics, and the commands."""

import itertools
import json
import math
import shutil

import pytest
from helpers import assert_same, command
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.integrate import quad

from multiexit.evaluation import seeds
from multiexit.training.stepper import Stepper

scores = st.floats(0, 1).map(lambda value: round(value, 4))


# The statistics


def t_density(t, freedom):
    """Of Student's distribution, by its formula."""
    top = math.gamma((freedom + 1) / 2)
    bottom = math.sqrt(freedom * math.pi) * math.gamma(freedom / 2)
    return top / bottom * (1 + t * t / freedom) ** (-(freedom + 1) / 2)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=8))
def test_the_paired_test_is_students(pairs):
    one, other = zip(*pairs, strict=True)
    row = seeds.paired(one, other)
    d = [a - b for a, b in pairs]
    n, mean = len(d), sum(d) / len(d)
    assert row["difference"] == pytest.approx(mean, abs=1e-12)
    assert (row["one"], row["other"]) == pytest.approx((sum(one) / n, sum(other) / n))
    deviation = math.sqrt(sum((x - mean) ** 2 for x in d) / (n - 1))
    if max(d) - min(d) < 1e-12:
        assert row["low"] is row["high"] is row["p"] is None
        return
    t = abs(mean) * math.sqrt(n) / deviation
    inside, _ = quad(t_density, 0, t, args=(n - 1,), limit=500)
    assert row["p"] == pytest.approx(1 - 2 * inside, abs=1e-6)
    half = (row["high"] - row["low"]) / 2
    assert (row["high"] + row["low"]) / 2 == pytest.approx(mean, abs=1e-9)
    covered, _ = quad(t_density, 0, half * math.sqrt(n) / deviation, args=(n - 1,), limit=500)
    assert 2 * covered == pytest.approx(0.95, abs=1e-6)


def test_a_difference_by_hand():
    row = seeds.paired([0.5, 0.7, 0.9], [0.4, 0.5, 0.6])  # d = 0.1, 0.2, 0.3: t = 2·√3, 2 degrees
    assert row["difference"] == pytest.approx(0.2)
    assert row["p"] == pytest.approx(1 - math.sqrt(12 / 14))
    assert row["low"] == pytest.approx(0.2 - 4.302653 * 0.1 / math.sqrt(3))
    assert row["high"] == pytest.approx(0.2 + 4.302653 * 0.1 / math.sqrt(3))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closure_of_bonferroni(p_M):
    """A hypothesis falls when every set of hypotheses that it is in falls by Bonferroni."""

    def adjusted(m):
        return max(
            min(1.0, size * min(p_M[k] for k in group))
            for size in range(1, len(p_M) + 1)
            for group in itertools.combinations(range(len(p_M)), size)
            if m in group
        )

    assert seeds.holm(p_M) == pytest.approx([adjusted(m) for m in range(len(p_M))])


def test_the_deviation_is_the_samples():
    assert seeds.spread([0.1, 0.2, 0.6])["deviation"] == pytest.approx(math.sqrt(0.14 / 2))
    assert seeds.spread([0.3]) == {"values": [0.3], "mean": 0.3, "deviation": None}


# The commands

TRAIN = ("train", "--task", "digits", "--exits", 4, "--max-steps", 2)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """LeeBERT and the joint loss on the digits, two seeds each; the second against the first."""
    place = tmp_path_factory.mktemp("seeds")
    words = (*TRAIN, "--seeds", 2, "--seed", 3)
    ended = command(*words, "--recipe", "joint", "--output", place / "joint")
    assert ended.code == 0, ended.err
    ended = command(*words, "--output", place / "lee", "--against", place / "joint")
    assert ended.code == 0, ended.err
    return place, ended


def test_the_seeds_together_are_what_they_are_alone(two, tmp_path):
    folder = two[0] / "lee"
    runs = [json.loads((folder / f"seed-{s}" / "results.json").read_text()) for s in (3, 4)]
    data = json.loads((folder / "seeds.json").read_text())
    assert data["seeds"] == [3, 4]
    assert (data["about"]["task"], data["about"]["recipe"]) == ("digits", "leebert")
    rows = data["sets"]["test"]
    means = []
    for m, row in enumerate(rows["exits"]):
        a, b = (run["exits"][m]["scores"]["score"] for run in runs)
        assert row["values"] == [a, b]
        assert row["mean"] == pytest.approx((a + b) / 2)
        assert row["deviation"] == pytest.approx(abs(a - b) / math.sqrt(2))
        means.append((a, b))
    mean_a, mean_b = (sum(exits) / 3 for exits in zip(*means, strict=True))
    assert rows["mean over exits"]["values"] == pytest.approx([mean_a, mean_b])
    for run, name, score in zip(
        runs, rows["at about 2x"]["policies"], rows["at about 2x"]["values"], strict=True
    ):
        own = [row for row in run["policies"] if row["policy"]["class"] == "Patience"]
        near = min(own, key=lambda row: abs(row["speedup_layers"] - 2))
        assert name == f"patience={near['policy']['patience']}"
        assert score == near["score"]

    ended = command(*TRAIN, "--seed", 4, "--output", tmp_path)
    assert ended.code == 0
    alone, among = (
        load_file(run / "model" / "model.safetensors") for run in (tmp_path, folder / "seed-4")
    )
    assert_same(alone, among)


def test_against_and_compare_say_the_same(two, tmp_path):
    place, ended = two
    written = json.loads((place / "lee" / "against.json").read_text())
    one, other = (seeds.read(place / name) for name in ("lee", "joint"))
    row = written["sets"]["test"]["mean over exits"]
    values = [data["sets"]["test"]["mean over exits"]["values"] for data in (one, other)]
    assert row == seeds.paired(*values)
    exits = written["sets"]["test"]["exits"]
    assert len(exits) == 3
    assert seeds.holm([row["p"] for row in exits]) == [row["p_holm"] for row in exits]
    again = command("compare", place / "lee", place / "joint", "--output", tmp_path / "c.json")
    assert again.code == 0, again.err
    assert json.loads((tmp_path / "c.json").read_text()) == written
    assert again.out.partition("\n\nwritten")[0] in ended.out
    assert "2 seeds (1 degree(s) of freedom)" in again.out


def test_a_finished_seed_is_not_trained_again(two, tmp_path, monkeypatch):
    folder = tmp_path / "lee"
    shutil.copytree(two[0] / "lee", folder)
    shutil.rmtree(folder / "seed-4")  # as if stopped before it
    kept = load_file(folder / "seed-3" / "model" / "model.safetensors")
    trained, step = [], Stepper.step

    def watched(self, *args, **more):
        trained.append(self.config.seed)
        return step(self, *args, **more)

    monkeypatch.setattr(Stepper, "step", watched)
    ended = command(*TRAIN, "--seeds", 2, "--seed", 3, "--output", folder, "--resume")
    assert ended.code == 0, ended.err
    assert set(trained) == {4}
    assert_same(load_file(folder / "seed-3" / "model" / "model.safetensors"), kept)
    for file in ("seeds.json", "seed-4/results.json"):
        before, after = (json.loads((p / file).read_text()) for p in (two[0] / "lee", folder))
        for data in (before, after):
            data.pop("about"), data.pop("epochs", None)
        assert after == before


def changed(data, **changes):
    return {**data, **changes}


def test_what_does_not_pair_is_refused(two):
    data = seeds.read(two[0] / "lee")
    wrong = {
        "the same seeds": changed(data, seeds=[3, 5]),
        "others on mrpc": changed(data, about={**data["about"], "task": "mrpc"}),
        "judged on": changed(data, sets={"test": {**data["sets"]["test"], "examples": 7}}),
    }
    for naming, other in wrong.items():
        with pytest.raises(ValueError, match=naming):
            seeds.compare(data, other)
    single = changed(data, seeds=[3])
    with pytest.raises(ValueError, match="at least 2 seeds"):
        seeds.compare(single, single)


def test_other_exits_leave_the_mean_to_compare(two):
    data = seeds.read(two[0] / "lee")
    rows = data["sets"]["test"]
    other = changed(data, sets={"test": {**rows, "exits": rows["exits"][-1:]}})
    compared = seeds.compare(data, other)
    assert compared["sets"]["test"]["exits"] == []
    assert "mean over exits" in seeds.comparison_table(compared)
    assert "exit 0" not in seeds.comparison_table(compared)


@pytest.mark.parametrize("content", [None, "", "[]", '{"format": 1}', '{"format": 9, "seeds": []}'])
def test_a_folder_without_seeds_is_named(content, two, tmp_path):
    if content is not None:
        (tmp_path / "seeds.json").write_text(content)
    for words in (
        ("compare", two[0] / "lee", tmp_path),
        (*TRAIN, "--seeds", 2, "--seed", 3, "--output", tmp_path / "x", "--against", tmp_path),
    ):
        ended = command(*words)
        assert (ended.code, str(tmp_path / "seeds.json") in ended.err) == (2, True)
        assert ended.err.count("\n") == 1
        assert not (tmp_path / "x").exists()


def test_a_comparison_that_can_not_be_is_refused_before_training(two, tmp_path):
    other = ("train", "--task", "cifar10", "--max-steps", 2)
    for words, naming in (
        ((*TRAIN, "--seeds", 3), "same seeds"),
        (TRAIN, "give --seeds"),
        ((*other, "--seeds", 2, "--seed", 3), "digits"),
    ):
        ended = command(*words, "--output", tmp_path / "x", "--against", two[0] / "joint")
        assert (ended.code, naming in ended.err) == (2, True)
        assert not (tmp_path / "x").exists()
