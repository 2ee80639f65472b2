"""Tables, pictures and the results page, from outputs made by hand."""

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import multiexit as mx
from multiexit.evaluation import alike, pictures, report, results, seeds
from multiexit.evaluation import cells as cells_of
from multiexit.policies import registry
from multiexit.runtime import versions

M = 3
COST = mx.Cost((1, 2, 3), (1_500_000, 2_500_000, 125_500_000), (900, 61_234, 92_000), 125_000_000)
LABELS_B = torch.tensor([0, 1, 0, 1])
ANSWERS_MB = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 0, 1]])


def hand_made(metric: str = "accuracy") -> mx.Outputs:
    """Exits that are right in 50, 75 and 100 % and agree with the last as often."""
    logits_MBC = 3.0 * torch.nn.functional.one_hot(ANSWERS_MB, 2)
    return mx.Outputs(logits_MBC, LABELS_B, COST, metric)


def learned(count: int) -> mx.History:
    """A history whose weights move, in two phases."""
    W_SMM = torch.rand(5, count, count, generator=torch.Generator().manual_seed(0)) * 2
    steps = [
        {"phase": int(s > 0), "epoch": 0, "step": 10 * s, "loss": 1.0, "W_MM": W_MM.tolist()}
        for s, W_MM in enumerate(W_SMM)
    ]
    epochs = [{"phase": 0, "epoch": 0, "step": 5, "seconds": 2.5, "exits": [{}], "mean": 0.75}]
    return mx.History(steps, epochs, epochs[0])


@pytest.fixture
def rows() -> list[mx.Row]:
    return mx.sweep(hand_made(), [mx.FixedExit(1), mx.FixedExit(2), mx.Patience(1)])


def cells(text: str, markdown: bool) -> list[list[str]]:
    """The cells of a table, its rule left out."""
    lines = [line for i, line in enumerate(text.splitlines()) if i != 1]
    if markdown:
        return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    rule = text.splitlines()[1]
    ends = [i for i, mark in enumerate(rule + " ") if mark == " " and rule[i - 1 : i] == "-"]
    starts = [0, *(end + 2 for end in ends[:-1])]
    return [[line[a:b].strip() for a, b in zip(starts, ends, strict=True)] for line in lines]


def timed(rows: list[mx.Row]) -> list[mx.Row]:
    """The first policy's time was measured, those of the others were not."""
    return [replace(rows[0], speedup_time=1.25), *rows[1:]]


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        greys = sum(count > 0 for count in image.convert("L").histogram())
        return min(image.size) > 300 and greys > 20


def test_exit_table_numbers():
    table = cells(report.exit_table(hand_made()), False)
    agreement = "agreement with the last exit (%)"
    assert table[0] == ["exit", "layers", "MACs", "parameters", "accuracy (%)", agreement]
    assert table[1] == ["0", "1", "1.5 M", "900", "50.00", "50.00"]
    assert table[2] == ["1", "2", "2.5 M", "61.2 k", "75.00", "75.00"]
    assert table[3] == ["2", "3", "125.5 M", "92.0 k", "100.00", "100.00"]


def test_score_stands_for_its_parts_only():
    header = cells(report.exit_table(hand_made("accuracy_f1")), False)[0]
    assert header[4:7] == ["score (%)", "accuracy (%)", "f1 (%)"]
    row = mx.judge(hand_made(), mx.FixedExit(0))
    only = mx.Row(row.policy, 0.5, {"score": 0.5}, 1.0, 3.0, 2.0, [1.0, 0.0, 0.0])
    assert cells(report.policy_table([only]), False)[0][1] == "score (%)"


def test_policy_table_numbers(rows):
    table = cells(report.policy_table(timed(rows)), False)
    assert table[0][2:] == ["mean layers", "speed-up, layers", "speed-up, MACs", "speed-up, time"]
    assert table[1] == ["fixed=1", "75.00", "2.00", "1.50×", "50.00×", "1.25×"]
    assert table[2] == ["fixed=2", "100.00", "3.00", "1.00×", "1.00×", "–"]
    # Only the first input's answer stays the same at exit 1.
    assert table[3][:3] == ["patience=1", "100.00", "2.75"]
    assert "speed-up, time" not in report.policy_table(rows)


@pytest.mark.parametrize("metric", ["accuracy", "accuracy_f1", "matthews"])
def test_markdown_and_text_have_the_same_cells(metric, rows):
    outputs = hand_made(metric)
    text, marked = report.exit_table(outputs), report.exit_table(outputs, markdown=True)
    assert cells(text, False) == cells(marked, True)
    text, marked = report.policy_table(rows), report.policy_table(rows, markdown=True)
    assert cells(text, False) == cells(marked, True)


def test_regression_has_no_agreement():
    outputs = mx.Outputs(torch.rand(M, 4, 1), torch.rand(4), COST, "pearson_spearman")
    assert "agreement" not in report.exit_table(outputs)
    assert "pearson (%)" in report.exit_table(outputs)


@dataclass(frozen=True)
class Mine(mx.FixedExit):
    depth: float = 0.5


def test_policy_names():
    assert registry.policy_name(mx.Patience(4)) == "patience=4"
    assert registry.policy_name(mx.Patience(4, tolerance=0.5)) == "patience=4,0.5"
    assert (
        registry.policy_name(mx.PatientConfident(1 / 3, 2))
        == "patient-confident=0.3333333333333333,2"
    )
    assert registry.policy_name(Mine(1)) == "Mine(exit=1, depth=0.5)"


def test_large_counts_are_readable():
    counts = [7, 999, 1_000, 125_500_000, 999_960_000, 4_100_000_000, 2e12]
    shown = ["7", "999", "1.0 k", "125.5 M", "1.0 G", "4.1 G", "2.0 T"]
    assert [cells_of.short_number(count) for count in counts] == shown


def test_no_rows_are_refused(rows, tmp_path):
    path = tmp_path / "a.png"
    for call in (
        lambda: report.table([]),
        lambda: report.policy_table([]),
        lambda: results.results_json(hand_made(), []),
        lambda: pictures.draw_curves({}, path),
        lambda: pictures.draw_curves({"a": []}, path),
        lambda: pictures.draw_exits({}, path),
        lambda: pictures.draw_shares([], path),
        lambda: pictures.draw_trajectory(mx.History(), path),
    ):
        with pytest.raises(ValueError, match=r"no rows|no policies|no learned"):
            call()
    assert not path.exists()


@pytest.mark.parametrize("count", [3, 12, 27])
def test_weights_and_their_trajectory_are_drawn(count, tmp_path):
    history = learned(count)
    W_MM = history.weights[-1][1]
    pictures.draw_weights(W_MM, tmp_path / "w.png")
    pictures.draw_trajectory(history, tmp_path / "t.png")
    assert is_picture(tmp_path / "w.png")
    assert is_picture(tmp_path / "t.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.png", "w.png"]


def test_curves_exits_and_shares_are_drawn(rows, tmp_path):
    pictures.draw_curves({"fixed": rows[:2], "patience": rows[2:]}, tmp_path / "c.png", "accuracy")
    pictures.draw_exits({"a": [0.5, 0.75, 1.0], "b": [0.4, 0.5]}, tmp_path / "e.png")
    pictures.draw_shares(rows[2], tmp_path / "s.png")
    pictures.draw_shares(rows, tmp_path / "ss.png")
    assert all(is_picture(path) for path in tmp_path.iterdir())
    pictures.draw_shares(rows[2], tmp_path / "s.svg")
    assert "<svg" in (tmp_path / "s.svg").read_text()


@pytest.mark.parametrize("W_MM", [None, [[1.0, 2.0, None], [0.5, 1, 1], [math.nan, 1, 1]]])
def test_summary_is_drawn(W_MM, rows, tmp_path):
    path = tmp_path / "all.png"
    pictures.draw_summary(hand_made(), {"a": rows[:1]}, rows[2], W_MM, path, title="by hand")
    assert is_picture(path)
    with Image.open(path) as image:
        assert image.width >= 1200


def test_weights_as_a_tensor_with_gradient_and_all_equal(tmp_path):
    pictures.draw_weights(torch.ones(M, M, requires_grad=True), tmp_path / "w.png")
    assert is_picture(tmp_path / "w.png")


def test_weights_of_a_wrong_shape_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"square.*\(2, 3\)"):
        pictures.draw_weights(torch.ones(2, 3), tmp_path / "w.png")


def test_unwritable_paths(rows, tmp_path):
    with pytest.raises(OSError, match=r"could not write .*s\.png"):
        pictures.draw_shares(rows, tmp_path / "missing" / "s.png")
    with pytest.raises(ValueError, match=r"s\.docx"):
        pictures.draw_shares(rows, tmp_path / "s.docx")
    assert not list(tmp_path.iterdir())


def test_round_trip(rows, tmp_path):
    history, rows = learned(M), timed(rows)
    history.steps[-1]["W_MM"][1][0] = None  # a term that doesn't count
    data = results.results_json(
        hand_made(), rows, history, title="By hand", command="multiexit demo", note="A | note.",
        recipe="leebert-lle", machine="a laptop",
    )  # fmt: skip
    (tmp_path / "hand.png").touch()
    path = tmp_path / "hand.json"
    path.write_text(json.dumps(data))
    assert results.read_results(path) == data
    assert data["exits"][1]["scores"] == {"score": 0.75, "accuracy": 0.75}
    assert data["policies"][0]["policy"] == {"class": "FixedExit", "exit": 1}
    assert data["policies"][0]["speedup_time"] == 1.25
    assert data["weights"][1][0] is None
    assert data["weights"][0][1] == history.weights[-1][1][0][1]
    assert "exits" not in data["epochs"][0]
    assert data["about"]["versions"]["torch"] == torch.__version__

    page = results.results_page(tmp_path)
    assert report.exit_table(hand_made(), markdown=True) in page
    assert report.policy_table(rows, markdown=True) in page
    for part in (
        "## By hand\n\nA | note.\n\n```sh\nmultiexit demo\n```", "machine a laptop",
        f"torch {torch.__version__}", "teacher 2", "![By hand](hand.png)",
    ):  # fmt: skip
        assert part in page
    compared = cells(page.split("\n\n")[2], True)[1]
    near = ["75.00", "fixed=1, 1.50×"]
    assert compared == ["By hand", "leebert-lle", "accuracy (%)", "75.00", "100.00", *near]


def test_page_of_several_files(rows, tmp_path):
    outputs = hand_made()
    for name, history in (("b", learned(13)), ("a", None)):
        data = results.results_json(outputs, rows, history)
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    page = results.results_page(tmp_path)
    assert page.index("## a") < page.index("## b")
    assert "13 × 13" in page
    assert "teacher 0" not in page


def test_plain_data_only(rows):
    with pytest.raises(ValueError, match="JSON"):
        results.results_json(hand_made(), rows, thing=object())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": 1, "exi', "damaged or cut short"),
        ("[]", "no results"),
        ('{"format": 2, "exits": []}', "format 2; this version of multiexit reads 1"),
        ('{"exits": []}', "lacks format"),
        ('{"format": 1, "exits": 3}', "exits is 3; it must be a list"),
        ('{"format": 1, "exits": [{"exit": 0}]}', "damaged"),
        ('{"format": 1, "exits": [], "policies": [], "about": {}}', "damaged"),
    ],
)
def test_damaged_files_are_named(text, words, rows, tmp_path):
    (tmp_path / "good.json").write_text(json.dumps(results.results_json(hand_made(), rows)))
    (tmp_path / "hurt.json").write_text(text)
    with pytest.raises(ValueError, match=rf"hurt\.json.*{words}"):
        results.results_page(tmp_path)


def test_json_of_every_kind_of_file_is_read_with_the_same_care(tmp_path):
    (tmp_path / "seeds.json").mkdir()
    with pytest.raises(ValueError, match=r"seeds\.json is no regular file"):
        seeds.read(tmp_path)
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match=r"pipe\.json is no regular file"):
        results.results_page(tmp_path)
    path = tmp_path / "history.json"
    for text, words in (
        ("[" * 100_000, "nested too deep"),
        ("[]", "no history.*a table"),
        ('{"steps": [1], "epochs": [], "best": null}', r"steps\[0\] is 1"),
        ('{"steps": [], "epochs": [], "best": null, "more": 1}', "more"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            mx.History.load(path)
    mx.History([{"loss": float("nan")}], [], {"mean": 1.0}).save(path)
    assert mx.History.load(path).best == {"mean": 1.0}


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=tmp_path.name):
        results.results_page(tmp_path)


def test_versions():
    found = versions()
    assert found["multiexit"] == mx.__version__
    assert {"python", "torch", "transformers", "cpus", "device"} <= set(found)


@pytest.mark.parametrize(
    ("answers", "labels", "said"),
    [
        ([[0, 0, 0], [0, 1, 0]], [0, 1, 0], "exit 0 answers every row alike, and has learned"),
        ([[0] * 3, [2] * 3, [0, 1, 0], [1] * 3], [0, 1, 0], "exits 0 to 1, 3 answer every row"),
        ([[0, 1, 0], [0, 1, 1]], [0, 1, 0], None),
        ([[0, 0, 0], [0, 0, 0]], [1, 1, 1], None),
    ],
    ids=["one", "several", "none", "one label"],
)
def test_exits_that_answer_every_row_alike_are_named(answers, labels, said):
    logits_MBC = torch.nn.functional.one_hot(torch.tensor(answers), 3).float()
    M = len(answers)
    cost = mx.Cost(*(tuple(range(1, M + 1)) for _ in range(3)), full_macs=M)
    advice = alike.advice(mx.Outputs(logits_MBC, torch.tensor(labels), cost))
    assert advice is None if said is None else advice.startswith(said)
