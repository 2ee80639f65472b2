"""The program of promises on unseen rows: run small, and how its page says what was not kept."""

import json

import pytest
from helpers import ROOT, benchmark


@pytest.fixture(scope="module")
def promises():
    return benchmark("promises.py")


@pytest.fixture(scope="module")
def made_page():
    return benchmark("promises_page.py")


def test_a_small_run_chooses_as_calibrate_does_and_is_made_once(promises, tmp_path, capsys):
    promises["main"](["--dry", "--output", str(tmp_path)])  # refuses where calibrate chooses others
    (path,) = tmp_path.iterdir()
    data = json.loads(path.read_text())
    assert data["about"]["command"] == "python benchmarks/promises.py --dry"
    assert len(data["rows"]) == 20
    for row in data["rows"]:
        assert (row["calibrated on"], row["splits"]) == (179, 3)
        certified = row["confidence"] is not None
        assert row["refused"] == 3 or not (certified and row["asked"] == 0.01)  # takes 230 rows
        assert row["refused"] == 3 or row["mean"] > 0
        assert row["broken"] <= 3 - row["refused"]
    before = path.read_bytes()
    promises["main"](["--dry", "--output", str(tmp_path)])
    assert "digits/joint-0: there" in capsys.readouterr().out
    assert path.read_bytes() == before


def test_a_small_run_is_no_result(promises, capsys):
    with pytest.raises(SystemExit):
        promises["main"](["--dry"])
    assert "--dry writes no results" in capsys.readouterr().err


def row(promise, asked, mean, worst, broken, **more):
    sizes = {"calibrated on": 100, "judged on": 300, "splits": 100, "refused": 0}
    figures = {"asked": asked, "mean": mean, "deviation": 0.01, "worst": worst, "broken": broken}
    return {"promise": promise, "loss": None, "confidence": None, "speedup": 2.0, **sizes} | {
        **figures,
        **more,
    }


def test_the_page_says_what_was_not_kept(made_page):
    bound = {"loss": "accuracy", "confidence": 0.9}
    rows = [
        row("speed-up", 2.0, 2.01, 1.8, 40),
        row("milliseconds, timed", 0.5, 0.63, 0.68, 100),
        row("risk", 0.02, 0.012, 0.03, 13, **bound),
        row("risk", 0.05, 0.045, 0.07, 14, **bound),
        row("risk", 0.05, 0.051, 0.09, 50, loss="disagreement"),
        row("risk", 0.01, None, None, 0, **bound, refused=100),
        row("milliseconds", 0.4, None, None, 0, refused=100),
        row("milliseconds, timed", 0.4, None, None, 0, refused=100),
        row("speed-up", 9.0, None, None, 0, refused=100),
    ]
    # Of 300 unseen rows the mean scatters too: Φ(−1.2816 / √(4/3)) = Φ(−1.1099) = 0.1335.
    assert made_page["due"](rows[2]) == pytest.approx(13.35, abs=0.01)
    speed, time, sure, average, *refused = made_page["sentences"](rows)
    assert "by `mx.calibrate` less came out on 40 % of the splits, at worst 10 %" in speed
    assert time.startswith("**Milliseconds: not kept.** Asked for 50 %")
    assert sure.startswith("**Risks with a confidence of 90 %: not kept of `accuracy` at 5 %.**")
    assert "on 13 to 14 % of the splits, and may be on about 13 %" in sure
    assert average.startswith("**Risks on average: not kept of `disagreement` at 5 %.**")
    assert refused == [
        "**Refused:** a risk of 1 % with a confidence, which 100 rows can't certify.",
        "**Refused:** 40 % of the whole network's time; no setting is that fast.",
        "**Refused:** a speed-up of 9×; no setting is that fast.",
    ]


def test_the_published_promises_are_those_of_planned_runs(promises, made_page):
    sections = made_page["page"]().split("### Promises on ")[1:]
    paths = sorted((ROOT / "docs" / "results" / "promises").iterdir())
    assert len(sections) == len(paths) > 0
    for path in paths:
        words = json.loads(path.read_text())["about"]["command"].split()
        assert words[words.index("--only") + 1] in promises["SHARES"]
        assert "--dry" not in words
