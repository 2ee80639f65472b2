"""The program of the published runs: a run is made once, and says how it is made again."""

import json
import runpy
import shlex
import sys
from unittest.mock import patch

import pytest
from helpers import ROOT

PUBLISHED = sorted((ROOT / "docs" / "results" / "runs").rglob("*.json"))


@pytest.fixture(scope="module")
def evidence():
    folder = ROOT / "benchmarks"
    with patch.object(sys, "path", [str(folder), *sys.path]):
        return runpy.run_path(str(folder / "evidence.py"))


def test_a_run_is_made_once_and_kept(evidence, tmp_path, capsys):
    arguments = ["--only", "digits/mixed-1", "--steps", "2", "--output", str(tmp_path)]
    evidence["main"](arguments)
    (path,) = tmp_path.rglob("*.json")
    assert path == tmp_path / "digits" / "mixed-1.json"
    data = json.loads(path.read_text())
    assert (
        data["about"]["command"] == "python benchmarks/evidence.py --only digits/mixed-1 --steps 2"
    )
    assert data["trained"]["steps"] == 2  # one in each of two phases
    assert len(data["exits"]) == 9
    assert data["exits"][-1]["speedup"] == pytest.approx(1, abs=0.01)
    for points in data["policies"].values():
        assert all(point["speedup"] > 0 and 0 <= point["score"] <= 1 for point in points)
    before = path.read_bytes()
    evidence["main"](arguments)
    assert path.read_bytes() == before
    evidence["main"]([*arguments, "--list"])
    assert "digits/mixed-1: there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "digits/jiont-0"], "no run is called so"),
        (["--data-dir", "nowhere"], "nowhere is no folder"),
        (["--steps", "0"], "--steps 0"),
    ],
)
def test_what_is_mistyped_is_refused_before_a_run(evidence, arguments, message, capsys):
    with pytest.raises(SystemExit):
        evidence["main"](arguments)
    assert message in capsys.readouterr().err


def test_a_run_without_its_data_is_left_out_in_a_sentence(evidence, tmp_path, capsys):
    evidence["main"](["--only", "cola/joint-0", "--output", str(tmp_path)])
    assert "cola/joint-0: needs --data-dir and --minilm" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_every_planned_recipe_and_its_settings_can_be_made(evidence):
    planned = list(evidence["runs"]())
    assert len({run.name for run in planned}) == len(planned)
    for run in planned:
        config = run.config(recipe := run.recipe())
        steps = run.setting.steps
        assert steps is None or config.max_steps * len(recipe.phases) == steps


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_published_run_is_planned_and_says_how_to_repeat_it(path, evidence):
    name = f"{path.parent.name}/{path.stem}"
    assert [run.name for run in evidence["runs"](name)] == [name]
    words = shlex.split(json.loads(path.read_text())["about"]["command"])
    assert words[words.index("--only") + 1] == name
    assert "--steps" not in words
