"""BERT-PKD: its loss written out as its paper has it."""

import copy

import pytest
import torch
from encoders import CLASSES, STILL, H, albert, assert_saves, batch, bert, on
from helpers import Text, assert_same, config, fit, tensors
from torch.nn import functional as F

import multiexit as mx
from multiexit.data.order import split_epoch
from multiexit.recipes import static
from multiexit.recipes.static.pkd import teacher_layers


def test_pkds_loss_is_the_papers():
    torch.manual_seed(5)
    teacher = on(bert())
    student = on(static.first_layers(bert(**STILL), 3), "all")
    for head in student.heads:
        head.dropout.p = 0.0
    still, frozen = copy.deepcopy(student), tensors(teacher)
    train, alpha, tau, beta, rate = Text(), 0.6, 4.0, 50.0, 0.05
    recipe = static.pkd(teacher, 3, alpha, tau, beta)
    run = config(max_steps=1, batch_size=len(train), momentum=0.0, lr=rate)
    fit(student, recipe, run, train)
    whole = train.collate([train[row] for row in split_epoch(len(train), 0, 0, False)[0]])
    labels = whole.pop("labels")
    B = len(labels)
    with torch.no_grad():
        answers = teacher.eval()(**whole)[0]
        states_T = teacher.backbone.features(**whole)
    states_S = still.backbone.features(**whole)
    logits = still.eval()(**whole)[-1]
    answer_part, state_part = 0.0, 0.0
    for b in range(B):
        p, q = (answers[b] / tau).softmax(0), (logits[b] / tau).softmax(0)
        for c in range(CLASSES):
            answer_part = answer_part + p[c] * (p[c].log() - q[c].log())
        for own, taught in ((0, 1), (1, 3)):  # 2 and 4 of 6, counted from 1
            s, t = states_S[own][b, 0], states_T[taught][b, 0]
            state_part = state_part + ((s / s.norm() - t / t.norm()) ** 2).sum()
    wanted_extra = alpha * tau**2 * answer_part / (B * CLASSES) + beta * state_part / (B * 2 * H)
    loss = (1 - alpha) * F.cross_entropy(logits, labels) + wanted_extra
    loss.backward()
    for (name, after), before in zip(student.named_parameters(), still.parameters(), strict=True):
        slope = torch.zeros_like(before) if before.grad is None else before.grad
        torch.testing.assert_close(after, before - rate * slope, atol=2e-5, rtol=1e-3, msg=name)
    assert_same(tensors(teacher), frozen)
    assert all(p.grad is None for p in teacher.parameters())
    assert not [name for name in student.state_dict() if name not in still.state_dict()]


def test_pkd_ends_in_a_short_network_of_one_exit(tmp_path):
    teacher = on(albert())
    student = on(static.first_layers(albert(), 3), "all")
    history = fit(student, static.pkd(teacher, 3), config(max_steps=3, lr=0.01), Text(), Text())
    row = history.epochs[-1]
    assert row["mean"] == row["exits"][-1]["score"]  # judged by the last exit alone
    early = student.heads[0].linear.weight
    assert early.grad is None
    one = static.single_exit(student)
    inputs, _ = batch()
    assert torch.equal(one.eval()(**inputs)[0], student.eval()(**inputs)[-1])
    assert_saves(one, tmp_path)


def test_pkd_of_the_labels_alone_is_fine_tuning():
    torch.manual_seed(5)
    teacher, student = on(bert()), on(static.first_layers(bert(), 2), "all")
    other = copy.deepcopy(student)
    fit(student, static.pkd(teacher, 2, alpha=0.0, beta=0.0), config(max_steps=2), Text())
    fit(other, static.fine_tune(), config(max_steps=2), Text())
    assert_same(tensors(student), tensors(other))


def test_pkds_layers_are_the_papers():
    count = {(12, 6, "skip"): [2, 4, 6, 8, 10], (12, 6, "last"): [7, 8, 9, 10, 11]}
    count |= {(12, 3, "skip"): [4, 8], (12, 3, "last"): [10, 11]}
    for (depth, layers, pattern), wanted in count.items():
        assert [layer + 1 for layer in teacher_layers(depth, layers, pattern)] == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 7}, r"1\.\.6"),
        ({"layers": 1}, "2 layers"),
        ({"alpha": 1.0}, r"alpha must be a number in \[0, 1\), got 1.0"),
        ({"alpha": -0.1}, r"alpha must be a number in \[0, 1\), got -0.1"),
        ({"temperature": 0.0}, "temperature"),
        ({"beta": -1.0}, "beta"),
        ({"pattern": "odd"}, "pattern"),
    ],
)
def test_pkd_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        static.pkd(on(bert()), **{"layers": 3, **options})


def test_pkd_refuses_other_students():
    recipe = static.pkd(on(bert()), 3)
    with pytest.raises(ValueError, match="exits='all'"):
        fit(on(static.first_layers(bert(), 3)), recipe, config(max_steps=1), Text())
    narrow = bert(hidden_size=8, num_hidden_layers=3)
    with pytest.raises(ValueError, match="width 8"):
        fit(on(narrow, "all"), recipe, config(max_steps=1), Text())
    with pytest.raises(ValueError, match=r"PKD needs at least 2 classes, got 1; .*Theseus"):
        static.pkd(mx.MultiExitModel(bert(), 1), 3)
