"""The program of the published runs: a run is made once, and says how it is made again."""

import argparse
import json
import shlex

import pytest
from helpers import ROOT, benchmark
from PIL import Image

import multiexit as mx

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


def test_cut_networks_are_trained_one_by_one_and_as_fast_as_planned(evidence):
    plan = benchmark("evidence_plan.py")
    setting = plan["Setting"]("digits", "digits", "cifar-resnet-20", ("truncated",), 1, 1)
    args = argparse.Namespace(steps=1, data_dir=None)
    data = evidence["cut"](plan["Run"](setting, "truncated", 0), args)
    whole = mx.MultiExitModel(mx.cifar_resnet(20, in_channels=1, size=8), 10, exits=[8]).cost()
    assert "exits" not in data
    assert "policies" not in data
    found = data["networks"]
    assert [network["stages"] for network in found] == [7, 6, 4, 3]
    for network, speedup in zip(found, evidence["CUTS"], strict=True):
        assert network["speedup"] == pytest.approx(speedup, rel=0.15)
        cut = mx.MultiExitModel(
            mx.cifar_resnet(20, in_channels=1, size=8), 10, exits=[network["stages"] - 1]
        ).cost()
        assert network["parameters"] == cut.params_M[0]
        assert network["speedup"] == pytest.approx(whole.full_macs / cut.macs_M[0], rel=1e-3)
        assert 0 <= network["score"] <= 1


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
    teacher = mx.MultiExitModel(mx.cifar_resnet(20), 10, exits=[8])
    for run in planned:
        recipe = run.recipe(teacher if run.method == evidence["CUT"] else None)
        config = run.config(recipe)
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


SPEEDS = ((1.0, 3.1), (2.0, 3.1), (3.0, 3.1))


def invented(folder, name, score, first=-0.01, kept=0.0, speeds=SPEEDS, **more):
    """A run of two exits; its policy loses `kept` of its score at all asked speed-ups, which come
    out as 3.1× if not otherwise."""
    point = {"policy": "entropy=0.3", "score": score - kept, "speedup": 3.1}
    data = {
        "about": {"machine": "a machine", "versions": {"torch": "2"}},
        "trained": {"steps": 150, "batch_size": 128, "lr": 0.1},
        "task": "digits",
        "metric": "accuracy",
        "examples": 359,
        "exits": [
            {"score": score + first, "speedup": 5.0},
            {"score": score + 0.01, "speedup": 1.0},
        ],
        "own policy": point,
        "policies": {
            "entropy": [{**point, "asked": asked, "speedup": speed} for asked, speed in speeds]
        },
    } | more
    path = folder / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data))


def test_differences_are_paired_by_seed_and_corrected(made_page, tmp_path):
    for seed, score in enumerate([0.90, 0.92, 0.97]):
        invented(tmp_path, f"digits/joint-{seed}", score)
        invented(tmp_path, f"digits/pabee-{seed}", score - 0.02 - 0.0001 * seed)
        invented(tmp_path, f"digits/mixed-{seed}", score + (-1) ** seed * 0.01)
        invented(tmp_path, f"digits/dbt-{seed}", score - 0.3 - (seed == 2))
        invented(tmp_path, f"digits/beem-{seed}", score)  # all differences alike: has no p
    (results,) = made_page["read"](tmp_path)
    tested = results.tests()
    assert set(tested) == {"pabee", "mixed", "dbt"}
    assert tested["pabee"]["difference"] == pytest.approx(-2.01)
    assert tested["pabee"]["p_holm"] == pytest.approx(3 * tested["pabee"]["p"])
    assert tested["pabee"]["p_holm"] < 0.01 < 0.2 < tested["mixed"]["p_holm"]
    exits, speed, _ = made_page["sentences"](results)  # no weights were learned
    assert "is `mixed`'s, 93.3 ± 4.0, +0.3 against `joint`'s on 3 shared seeds" in exits
    assert "after correction for 3 tests, `pabee` is below it; lower in every seed" in exits
    assert exits.endswith("but not surely: `dbt`.")
    assert (
        "3× by entropy, `mixed` keeps most (of 5 methods, not tested), 93.3 ± 4.0 (3.10×)" in speed
    )
    assert "| – " in made_page["methods_table"](results)  # nothing was as fast as 4×


def test_methods_are_ranked_on_the_seeds_that_they_share_with_the_base(made_page, tmp_path):
    for seed, score in enumerate([0.97, 0.90, 0.92]):
        invented(tmp_path, f"digits/joint-{seed}", score)
        invented(tmp_path, f"digits/mixed-{seed}", score + 0.001 * (seed + 1))
    invented(tmp_path, "digits/pabee-0", 0.96)  # the best mean, on a seed good for all
    (results,) = made_page["read"](tmp_path)
    rows = [line.split("|") for line in made_page["methods_table"](results).splitlines()[2:]]
    assert [row[1].strip() for row in rows] == ["`mixed`", "`joint`", "`pabee`"]
    assert [row[-3].strip() for row in rows] == ["+0.2", "–", "-1.0"]


def test_a_method_with_poolers_is_tested_against_poolers_alone(made_page, tmp_path):
    for seed, score in enumerate([0.90, 0.92, 0.97]):
        invented(tmp_path, f"sst2/joint-{seed}", score)
        invented(tmp_path, f"sst2/joint-pooler-{seed}", score + 0.02 + 0.0001 * seed)
        invented(tmp_path, f"sst2/pabee-pooler-{seed}", score + 0.01 + 0.0002 * seed)
    (results,) = made_page["read"](tmp_path)
    tested = results.tests()
    assert tested["joint-pooler"]["difference"] == pytest.approx(2.01)
    assert tested["pabee-pooler"]["difference"] == pytest.approx(-0.99)
    exits, poolers, *_ = made_page["sentences"](results)
    assert exits.endswith("after correction for 2 tests, `joint-pooler` is above it.")
    assert "A pooler for each exit alone brings +2.0 (`joint-pooler` less `joint`)" in poolers
    assert poolers.endswith("`pabee-pooler` is below it.")


def test_the_overview_says_where_a_choice_surely_helps(made_page, tmp_path):
    for seed, score in enumerate([0.90, 0.92, 0.97]):
        invented(tmp_path, f"digits/joint-{seed}", score, kept=0.2 + 0.001 * seed)
        invented(tmp_path, f"digits/leebert-uniform-{seed}", score + 0.02 + 0.001 * seed)
        invented(tmp_path, f"digits/leebert-{seed}", score - 0.01 + 0.02 * seed)
    for seed in range(2):
        invented(tmp_path, f"sst2/joint-{seed}", 0.8 + 0.1 * seed)
        invented(tmp_path, f"sst2/leebert-uniform-{seed}", 0.7 + 0.101 * seed)
    invented(tmp_path, "sst2/leebert-uniform-2", 0.1)  # no seed of the base
    invented(tmp_path, "cola/joint-0", 0.3, metric="matthews", kept=0.3)
    parts = made_page["overview"](made_page["read"](tmp_path)).split("\n\n")
    training, speed, policies, _, rows = parts
    assert "*distillation among exits* above on digits, cifar-resnet-20, *learned" in training
    assert "*learned weights* nowhere" in training
    head, _, sst2, cola, digits = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()
    ]
    sst2, cola, digits = (dict(zip(head, row, strict=True)) for row in (sst2, cola, digits))
    assert digits["distillation among exits"] == "**+2.1** (3)"
    assert digits["learned weights"] == "-1.1 (3)"  # −3, −1.1 and +0.8: not sure
    assert digits["3×"] == "**-21.1** (3) at 3.10×"
    assert digits["entropy worse"] == "3 of 9"
    assert sst2["distillation among exits"] == "-10.0 (2)"  # two seeds are never sure
    assert sst2["learned weights"] == "–"
    assert cola["entropy worse"] == "–"  # correlations don't mix
    assert "2 points at most on digits, MiniLM-L6, 150 steps (-1.0 at 3.10×), and more on" in speed
    assert speed.endswith("(-31.0 at 3.10×); digits, cifar-resnet-20 (-21.1 at 3.10×).")
    assert "by entropy on none, by patience on none" in policies


def test_settings_are_mixed_with_those_next_to_them_alone():
    between = benchmark("evidence_runs.py")["between"]
    points = [{"speedup": s, "score": v} for s, v in ((1.0, 0.9), (2.0, 0.5), (4.0, 0.48))]
    run = {"policies": {"entropy": points}}
    assert between("entropy", 2.0)(run) == pytest.approx(0.5)  # a mix of the others has 0.62
    assert between("entropy", 4 / 3)(run) == pytest.approx(0.7)
    assert between("entropy", 5.0)(run) is None
    assert between("entropy", 0.9)(run) is None


def test_policies_worse_than_fixed_exits_drawn_at_random_are_called_so(made_page, tmp_path):
    # Exits of 40 % at 5× and 90 % at 1×: at 3.1× a random mix has 47.7 %.
    for name, kept in (("joint-0", 0.3), ("joint-1", 0.3), ("pabee-0", 0.45)):
        invented(tmp_path, f"digits/{name}", 0.89, first=-0.49, kept=kept)
    (results,) = made_page["read"](tmp_path)
    *_, policies = made_page["sentences"](results)
    assert "entropy in 1 of 3 runs" in policies
    assert policies.endswith("None is worse in most runs.")
    assert "47.7 ± 0.0" in made_page["policies_table"](results).splitlines()[-1]
    invented(tmp_path, "digits/joint-1", 0.89, first=-0.49, kept=0.45)
    (results,) = made_page["read"](tmp_path)
    *_, policies = made_page["sentences"](results)
    assert policies.endswith("In most runs leaving at random is better than entropy.")


def test_a_mix_of_two_fixed_exits_is_what_random_leaving_comes_to():
    best_mix = benchmark("evidence_runs.py")["best_mix"]
    points = [{"speedup": s, "score": v} for s, v in ((4.0, 0.4), (2.0, 0.45), (1.0, 0.9))]
    assert best_mix(points, 5.0) is None
    assert best_mix(points, 4.0) == 0.4
    assert best_mix(points, 1.0) == best_mix(points, 0.9) == 0.9
    # A third of the rows to the last exit and the others to the first cost one half.
    assert best_mix(points, 2.0) == pytest.approx(0.4 * 2 / 3 + 0.9 / 3)


def test_a_method_that_destroys_a_trained_network_is_named(made_page, tmp_path):
    for method, score in (("joint", 0.88), ("heads-only", 0.91), ("dbt", 0.2)):
        invented(tmp_path, f"cifar10-resnet20/{method}-0", score)
    (results,) = made_page["read"](tmp_path)
    *_, last = made_page["sentences"](results)
    assert last.startswith(
        "**Last exit.** `heads-only`, which leaves the trained network as it was"
    )
    assert "`joint` -3.0, and the worst, `dbt`, -71.0. Less than half is left by `dbt`." in last
    invented(tmp_path, "cifar10-resnet20/dbt-0", 0.8)
    (results,) = made_page["read"](tmp_path)
    assert [*made_page["sentences"](results)][-1].endswith("and the worst, `dbt`, -11.0.")


def test_cut_networks_stand_beside_exits_as_fast_and_in_no_comparison(made_page, tmp_path):
    speeds = ((1.0, 1.6), (2.0, 3.1))
    for seed, score in enumerate([0.88, 0.90]):
        invented(tmp_path, f"cifar10-resnet20/joint-{seed}", score, kept=0.1, speeds=speeds)
        invented(tmp_path, f"cifar10-resnet20/pabee-{seed}", score - 0.01, speeds=speeds)
    (without,) = made_page["read"](tmp_path)
    networks = [{"stages": s, "speedup": v, "parameters": 9000} for s, v in ((5, 2.0), (2, 9.0))]
    for seed, scores in enumerate([(0.81, 0.4), (0.85, 0.5), (0.1, 0.1)]):  # two are shared seeds
        made = [{**network, "score": s} for network, s in zip(networks, scores, strict=True)]
        path = tmp_path / "cifar10-resnet20" / f"truncated-{seed}.json"
        path.write_text(json.dumps({"networks": made}))
    (results,) = made_page["read"](tmp_path)
    assert results.tests() == without.tests()
    assert list(made_page["sentences"](results)) == list(made_page["sentences"](without))
    for table in ("methods_table", "policies_table"):
        assert made_page[table](results) == made_page[table](without)
    _, _, first, second = made_page["cut_table"](results, results.cut).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (first, second)]
    assert cells[0][:4] == ["5", "2.00×", "9,000", "83.0 ± 2.8"]
    assert cells[0][4:] == ["79.0 ± 1.4", "88.0 ± 1.4 (`pabee`, entropy)"]
    assert cells[1] == ["2", "9.00×", "9,000", "45.0 ± 7.1", "–", "–"]
    assert "Cut networks" in made_page["section"](results)
    assert "Cut networks" not in made_page["section"](without)
    assert results.digest != without.digest
    made_page["draw"](results, tmp_path / "picture.png")
    assert Image.open(tmp_path / "picture.png").info["Description"] == results.digest


def test_a_sections_command_names_the_folders_that_its_runs_need(
    made_page, evidence, tmp_path, monkeypatch, capsys
):
    for name in ("digits", "sst2", "mrpc-mpnet", "cifar10-resnet20"):
        invented(tmp_path, f"{name}/joint-0", 0.9)
    monkeypatch.chdir(tmp_path)
    for folder, _ in evidence["FOLDERS"].values():
        (tmp_path / folder).mkdir()
    commands = [line for line in made_page["page"](tmp_path).splitlines() if "--only" in line]
    assert len(commands) == 4
    for line in commands:
        python, program, *words = shlex.split(line)
        assert (python, program) == ("python", "benchmarks/evidence.py")
        evidence["main"]([*words, "--list", "--output", str(tmp_path / "none")])
    listed = capsys.readouterr().out.splitlines()
    assert listed
    assert all(line.endswith(": to be made") for line in listed)


def test_each_method_of_a_picture_has_a_colour_of_its_own():
    picture, plan = benchmark("evidence_picture.py"), benchmark("evidence_plan.py")
    for setting in plan["SETTINGS"]:
        methods = dict.fromkeys(setting.methods)
        styles = picture["styles"](picture["Results"](setting, methods))
        assert set(styles) == set(methods) - {"without-exits"}
        assert len({style["color"] for style in styles.values()}) == len(styles)
