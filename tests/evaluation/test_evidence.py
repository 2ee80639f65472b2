"""The program of the published runs: a run is made once, and says how it is made again."""

import json
import shlex

import pytest
from helpers import ROOT, benchmark
from PIL import Image

PUBLISHED = sorted((ROOT / "docs" / "results" / "runs").rglob("*.json"))


@pytest.fixture(scope="module")
def evidence():
    return benchmark("evidence.py")


@pytest.fixture(scope="module")
def made_page():
    return benchmark("evidence_page.py")


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


def test_every_run_that_stands_beside_the_papers_figures_is_planned(evidence):
    paper = json.loads((ROOT / "docs" / "results" / "paper.json").read_text(encoding="utf-8"))
    planned = {(run.setting.name, run.method) for run in evidence["runs"]()}
    for data in [*paper["tables"], paper["minutes"]]:
        for setting in data["runs"].values():
            methods = {row["run"] for row in data["rows"]} - {None, "without-exits"}
            assert {(setting, method) for method in methods} <= planned


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_published_run_is_planned_and_says_how_to_repeat_it(path, evidence):
    name = f"{path.parent.name}/{path.stem}"
    assert [run.name for run in evidence["runs"](name)] == [name]
    words = shlex.split(json.loads(path.read_text())["about"]["command"])
    assert words[words.index("--only") + 1] == name
    assert "--steps" not in words


def test_page_and_pictures_are_of_the_published_runs(made_page):
    assert (ROOT / "docs" / "results" / "index.md").read_text(encoding="utf-8") == made_page[
        "page"
    ]()
    for results in made_page["read"]():
        picture = Image.open(ROOT / "docs" / "images" / results.image)
        assert picture.info["Description"] == results.digest


def invented(folder, method, seed, score):
    """A run of two exits whose policy is as good at any speed."""
    point = {"policy": "entropy=0.3", "score": score, "speedup": 3.1}
    data = {
        "about": {"machine": "a machine", "versions": {"torch": "2"}},
        "trained": {"steps": 150, "batch_size": 128, "lr": 0.1},
        "task": "digits",
        "metric": "accuracy",
        "examples": 359,
        "exits": [{"score": score - 0.01}, {"score": score + 0.01}],
        "own policy": point,
        "policies": {"entropy": [{"asked": asked, **point} for asked in (1.0, 2.0, 3.0)]},
    }
    path = folder / "digits" / f"{method}-{seed}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data))


def test_differences_are_paired_by_seed_and_corrected(made_page, tmp_path):
    for seed, score in enumerate([0.90, 0.92, 0.97]):
        invented(tmp_path, "joint", seed, score)
        invented(tmp_path, "pabee", seed, score - 0.02 - 0.0001 * seed)
        invented(tmp_path, "mixed", seed, score + (-1) ** seed * 0.01)
    (results,) = made_page["read"](tmp_path)
    tested = made_page["tests"](results)
    assert tested["pabee"]["difference"] == pytest.approx(-2.01)
    assert tested["pabee"]["p_holm"] == pytest.approx(2 * tested["pabee"]["p"])
    assert tested["pabee"]["p_holm"] < 0.01 < 0.5 < tested["mixed"]["p_holm"]
    exits, speed = made_page["sentences"](results)  # no weights were learned
    assert "is `mixed`'s, 93.3 ± 4.0; `joint` has 93.0 ± 3.6" in exits
    assert "After correction for 2 tests `pabee` is below it." in exits
    assert "Asked for 3× by entropy, `mixed` keeps most, 93.3 ± 4.0" in speed
    assert "| – " in made_page["methods_table"](results)  # nothing was as fast as 4×
