"""Outputs: what they can't be made of, and what can't be asked of none."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from helpers import latency_table, linear_chain

import multiexit as mx
from multiexit.evaluation.recommendation import recommend

M, B, C = 4, 40, 3
COST = mx.Cost((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), 4)
LABELS = {
    "classification": torch.arange(B) % C,
    "multi-label": torch.ones(B, C),
    "regression": torch.rand(B, C),
    "token-classification": torch.zeros(B, 2, dtype=torch.long),
    "embedding": torch.ones(B, C),
}


def made(problem="classification", **changes) -> mx.Outputs:
    shape = (M, B, 2, C) if problem == "token-classification" else (M, B, C)
    fields = {"logits_MBC": torch.randn(shape), "labels_B": LABELS[problem], "cost": COST}
    return mx.Outputs(**{**fields, "problem": problem, **changes})


def spoilt(value, problem="classification", exit=2, row=7, **place):
    logits_MBC = made(problem).logits_MBC
    logits_MBC[exit, row, ..., place.get("cls", 1)] = value
    return logits_MBC


@pytest.mark.parametrize("problem", LABELS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_say_nothing_are_named(problem, value):
    logits_MBC = spoilt(value, problem)
    if value == -math.inf and problem not in ("regression", "embedding"):
        made(problem, logits_MBC=logits_MBC)  # a class that is out of the question
        if problem == "multi-label":
            return
        logits_MBC[2, 7] = -math.inf
    with pytest.raises(ValueError, match=r"exit 2 gave NaN or infinite logits for row 7: \["):
        made(problem, logits_MBC=logits_MBC)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"logits_MBC": torch.randn(M, B, C).numpy()}, r"got float32 \[4, 40, 3\].*from_numpy"),
        ({"logits_MBC": torch.randn(M, B)}, r"floats \[M, B, C\].*got torch.float32 \[4, 40\]"),
        ({"logits_MBC": torch.randn(0, B, C)}, "of an exit at least"),
        ({"logits_MBC": torch.ones(M, B, C).long()}, "a tensor of floats .* torch.int64"),
        ({"logits_MBC": None}, "a tensor of floats .* got None"),
        (
            {"cost": mx.Cost((1, 2, 3), (1, 2, 3), (1, 2, 3), 3)},
            "of 4 exits.*a Cost of 4; got one of 3",
        ),
        ({"cost": None}, "a Cost of 4; got NoneType"),
        (
            {"certainty_MB": torch.rand(7, B)},
            r"certainty_MB must be float, a tensor \[4, 40\].*\[7, 40\]",
        ),
        ({"keys_B": torch.arange(3)}, r"keys_B must be int64, a tensor \[40\]"),
        ({"asked_BT": torch.ones(B, 2).bool()}, "asked_BT is of tokens"),
        ({"labels_B": torch.full((B,), 7)}, "label 7 in row 0 .* from 0 to 2"),
        ({"labels_B": torch.full((B,), -100)}, "label -100 in row 0"),
        ({"labels_B": torch.zeros(B, 1, dtype=torch.long)}, r"shape \(40, 1\) for 40 rows"),
        ({"labels_B": torch.zeros(B)}, "labels are torch.float32; they must be int64"),
        ({"labels_B": torch.arange(5) % C}, r"shape \(5,\) for 40 rows"),
        ({"labels_B": (torch.arange(B) % C).numpy()}, "labels are a tensor, got ndarray"),
        ({"problem": "classes"}, "no problem 'classes'"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        replace(made(), **changes)


def test_tokens_have_a_mask_of_their_shape():
    tokens = "token-classification"
    assert made(tokens, asked_BT=torch.ones(B, 2).bool()).num_exits == M
    for wrong in (torch.ones(B, 3).bool(), torch.ones(B, 2)):
        with pytest.raises(ValueError, match=r"asked_BT must be bool, a tensor \[40, 2\]"):
            made(tokens, asked_BT=wrong)
    with pytest.raises(ValueError, match=r"shape \(40, 5\) for 40 rows"):
        made(tokens, labels_B=torch.zeros(B, 5, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32])
def test_labels_of_two_classes_may_be_of_any_whole_kind(dtype):
    yes_B = torch.arange(B) % 2
    logits_MBC = torch.randn(M, B, 2)
    outputs, wanted = (mx.Outputs(logits_MBC, y, COST) for y in (yes_B.to(dtype), yes_B))
    assert outputs.labels_B.dtype == torch.long
    assert mx.judge(outputs, mx.MaxProb(0.7)) == mx.judge(wanted, mx.MaxProb(0.7))
    model = linear_chain(classes=2)
    collected = mx.collect(model, [(torch.randn(B, 6), yes_B.to(dtype))])
    assert torch.equal(collected.labels_B, yes_B)


def asked_of(outputs):
    """Everything that can be asked of outputs."""
    latency = latency_table(linear_chain(), (1.0, 24.0), 0.0)
    table = mx.calibration_table(made(), mx.MaxProb)
    return {
        "judge": lambda: mx.judge(outputs, mx.MaxProb(0.9)),
        "sweep": lambda: mx.sweep(outputs, [mx.MaxProb(0.9)]),
        "exit_scores": lambda: mx.exit_scores(outputs),
        "shares": lambda: outputs.shares(mx.MaxProb(0.9)),
        "speedup": lambda: mx.calibrate(outputs, mx.MaxProb, speedup=1.2),
        "risk": lambda: mx.calibrate(outputs, mx.MaxProb, risk=0.2),
        "table": lambda: mx.calibration_table(outputs, mx.MaxProb),
        "budget": lambda: mx.budgeted(outputs, 1.3),
        "experts": lambda: mx.fit_experts(outputs),
        "replay": lambda: mx.replay(outputs, table, 2.0),
        "pay": lambda: mx.exits_that_pay(outputs, mx.MaxProb(0.9), latency),
        "temperatures": lambda: mx.fit_temperatures(linear_chain(), outputs),
        "recommend": lambda: recommend(outputs, speedup=1.2),
    }


@pytest.mark.parametrize("name", asked_of(None))
@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        (made().take(torch.zeros(B, dtype=torch.bool)), "no rows: these outputs are empty"),
        (linear_chain(), "outputs are what collect.* gives; got MultiExitModel"),
    ],
    ids=["empty", "model"],
)
def test_nothing_is_asked_of_no_rows_or_of_the_model(name, outputs, match):
    if name == "shares" and not isinstance(outputs, mx.Outputs):
        return
    with pytest.raises(ValueError, match=match):
        asked_of(outputs)[name]()


def test_batches_of_no_rows_are_no_data():
    x, labels_B = torch.randn(B, 6), torch.arange(B) % C
    empty = (x[:0], labels_B[:0])
    with pytest.raises(ValueError, match="no rows to evaluate: the data set is empty"):
        mx.collect(linear_chain(), [empty, empty])
    assert len(mx.collect(linear_chain(), [empty, (x, labels_B)]).labels_B) == B


@pytest.mark.parametrize("problem", [*LABELS, "dict"])
def test_a_batch_s_labels_are_as_many_as_its_rows(problem, make_backbone, text):
    """Where all labels together are as many as all rows, too."""
    labels_B = LABELS["classification" if problem == "dict" else problem]
    if problem == "token-classification":
        model = mx.MultiExitModel(make_backbone("bert"), C, problem=problem).eval()
        inputs = text(B)
        labels_B = torch.zeros(inputs["input_ids"].shape, dtype=torch.long)
    else:
        problem = "classification" if problem == "dict" else problem
        width = 6 if problem == "embedding" else C
        model = mx.MultiExitModel(linear_chain().backbone, width, problem=problem).eval()
        inputs = {"x": torch.randn(B, 6)}
        labels_B = torch.ones(B, 6) if problem == "embedding" else labels_B
    parts = [(slice(0, 30), slice(0, 5)), (slice(30, B), slice(5, B))]
    batches = [
        {**{k: v[rows] for k, v in inputs.items()}, "labels": labels_B[own]} for rows, own in parts
    ]
    match = r"batch 0 \(counted from 0\): labels have shape \(5,.* for 30 rows"
    with pytest.raises(ValueError, match=match):
        mx.collect(model, batches)
    if problem == "classification":
        with pytest.raises(ValueError, match=match):
            mx.collect(model, [(batch["x"], batch["labels"]) for batch in batches])


@dataclass(frozen=True)
class InPlace(mx.ExitPolicy):
    """Changes what it is given."""

    threshold: float

    def init(self, logits_BC):
        return {}

    def step(self, state, logits_BC):
        return state, logits_BC.div_(3).softmax(-1).amax(-1) >= self.threshold


def test_a_policy_that_works_in_place_changes_no_logits():
    model, x = linear_chain().eval(), torch.randn(B, 6)
    with torch.no_grad():
        outputs = made(logits_MBC=model(x=x), cost=model.cost())
    kept = outputs.logits_MBC.clone()
    row = mx.judge(outputs, InPlace(0.4))
    assert torch.equal(kept, outputs.logits_MBC)
    assert mx.judge(outputs, InPlace(0.4)) == row
    exit_B, answer_BC = outputs.answers(InPlace(0.4))
    predicted = model.predict(InPlace(0.4), x=x)
    assert torch.equal(predicted.exit_B, exit_B)
    torch.testing.assert_close(predicted.logits_BC, answer_BC)
