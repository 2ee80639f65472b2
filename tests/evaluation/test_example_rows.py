"""The rows worth looking at against loops over rows, and the calibration against a table."""

import pytest
import torch

import multiexit as mx
from multiexit.evaluation import examples
from multiexit.evaluation.examples import examples_json


def made(rows=60, exits=4, classes=3, **more) -> mx.Outputs:
    generator = torch.Generator().manual_seed(0)
    labels_B = torch.randint(classes, (rows,), generator=generator)
    truth_BC = torch.nn.functional.one_hot(labels_B, classes).float()
    noise_MBC = torch.randn(exits, rows, classes, generator=generator)
    depth_M11 = torch.linspace(0.2, 1, exits)[:, None, None]
    layers = tuple(range(1, exits + 1))
    cost = mx.Cost(layers, layers, layers, full_macs=exits)
    return mx.Outputs(depth_M11 * truth_BC + noise_MBC, labels_B, cost, **more)


def by_loop(outputs, policy):
    """Each group's rows, with where they leave."""
    exit_B, answer_BC = outputs.answers(policy)
    rows = []
    for row in range(len(outputs.labels_B)):
        sure = float(answer_BC[row].softmax(0).max())
        label = int(outputs.labels_B[row])
        right = int(answer_BC[row].argmax()) == label
        last = int(outputs.logits_MBC[-1, row].argmax()) == label
        rows.append((row, int(exit_B[row]), sure, right, last))

    def group(wanted, key):
        return [r[0] for r in sorted(filter(wanted, rows), key=key)][: examples.EACH]

    return {
        "easy": group(lambda r: r[3], lambda r: (r[1], -r[2])),
        "hard": group(lambda r: True, lambda r: (-r[1], r[3], r[2])),
        "lost": group(lambda r: not r[3] and r[4], lambda r: -r[2]),
        "won": group(lambda r: r[3] and not r[4], lambda r: -r[2]),
    }


@pytest.mark.parametrize("policy", [mx.MaxProb(0.6), mx.Patience(1), mx.FixedExit(0)])
def test_the_groups_are_those_of_a_loop(policy):
    outputs, names = made(), ["zero", "one", "two"]
    found = examples_json(outputs, policy, lambda row: {"text": [f"text {row}"]}, names)
    examples.TABLE("examples", found)
    groups = {name: [r["row"] for r in rows] for name, rows in found["groups"].items()}
    assert groups == by_loop(outputs, policy)
    assert groups["lost"]
    exit_B, _ = outputs.answers(policy)
    for rows in found["groups"].values():
        for r in rows:
            assert r["text"] == [f"text {r['row']}"]
            assert r["label"] == names[int(outputs.labels_B[r["row"]])]
            assert r["exit"] == int(exit_B[r["row"]])
            p_MC = outputs.logits_MBC[:, r["row"]].softmax(-1)
            assert [a for a, _ in r["answers"]] == [names[int(p_C.argmax())] for p_C in p_MC]
            sure = [s for _, s in r["answers"]]
            assert sure == pytest.approx(p_MC.amax(-1).tolist(), abs=1e-4)


def test_the_calibration_is_that_of_a_loop():
    outputs = made(rows=200)
    for m, found in enumerate(examples.calibration(outputs)):
        bins = {}
        for logits_C, label in zip(outputs.logits_MBC[m], outputs.labels_B, strict=True):
            p = float(logits_C.softmax(0).max())
            k = next(k for k in range(10) if p <= (k + 1) / 10)
            bins.setdefault(k, []).append((p, int(logits_C.argmax()) == int(label)))
        means = [[sum(c) / len(c) for c in zip(*bins[k], strict=True)] for k in sorted(bins)]
        assert [[b["confidence"], b["right"]] for b in found["bins"]] == [
            pytest.approx(pair) for pair in means
        ]
        sizes = [len(bins[k]) for k in sorted(bins)]
        assert [b["rows"] for b in found["bins"]] == sizes
        ece = sum(n * abs(r - c) for n, (c, r) in zip(sizes, means, strict=True)) / 200
        assert found["ece"] == pytest.approx(ece)


def test_numbers_have_rows_and_no_calibration():
    noise_MBC, cost = torch.randn(4, 60, 1), made().cost
    outputs = mx.Outputs(noise_MBC, torch.rand(60), cost, "pearson_spearman")
    found = examples_json(outputs, mx.Patience(1, tolerance=0.5), lambda row: {})
    assert found["calibration"] is None
    assert set(found["groups"]) == {"easy", "hard"}


def test_several_labels_are_named_and_counted_by_decision():
    labels_BC = (torch.rand(30, 4, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    logits_MBC = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(1))
    cost = mx.Cost((1, 2), (1, 2), (1, 2), full_macs=2)
    outputs = mx.Outputs(logits_MBC, labels_BC, cost, "micro_f1", problem="multi-label")
    found = examples_json(outputs, mx.MaxProb(0.6), lambda row: {}, ["a", "b", "c", "d"])
    assert sum(b["rows"] for b in found["calibration"][0]["bins"]) == 120
    row = found["groups"]["hard"][0]
    yes = [name for name, on in zip("abcd", labels_BC[row["row"]].tolist(), strict=True) if on]
    assert row["label"] == (", ".join(yes) or "none")
