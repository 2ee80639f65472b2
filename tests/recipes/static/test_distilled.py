"""Distillation from a whole network: its loss written out, of images and of text."""

import copy

import pytest
import torch
from encoders import CLASSES, STILL, bert, on
from helpers import Text, assert_same, config, convnet, fit, images, tensors
from torch.nn import functional as F

import multiexit as mx
from multiexit.data.order import split_epoch
from multiexit.recipes import static


def of_images():
    """A whole network and what is cut from it, and rows; images without chance."""
    teacher = convnet(dropout=0.0, exits=[3])
    short = mx.MultiExitModel(copy.deepcopy(teacher.backbone), CLASSES, exits=[1])
    return teacher, short, images(augment=False)


def of_text():
    teacher = on(bert(**STILL))
    short = mx.MultiExitModel(copy.deepcopy(teacher.backbone), CLASSES, exits=[2])
    short.heads[0].dropout.p = 0.0
    return teacher, short, Text()


def unpacked(train):
    """All rows as one batch, in the order of the first epoch: arguments, inputs and labels."""
    rows = [train[row] for row in split_epoch(len(train), 0, 0, False)[0]]
    if isinstance(train, Text):
        inputs = train.collate(rows)
        return (), inputs, inputs.pop("labels")
    x, labels = torch.utils.data.default_collate(rows)
    return (x,), {}, labels


@pytest.mark.parametrize("made", [of_images, of_text])
def test_distillations_loss_is_the_papers_and_trains_what_runs(made):
    torch.manual_seed(5)
    teacher, student, train = made()
    teacher.temperature_M.fill_(1.5)  # calibrated answers teach
    still, frozen = copy.deepcopy(student), tensors(teacher)
    alpha, tau, rate = 0.3, 3.0, 0.05
    run = config(max_steps=1, batch_size=len(train), momentum=0.0, lr=rate)
    fit(student, static.distillation(teacher, alpha, tau), run, train)
    args, inputs, labels = unpacked(train)
    with torch.no_grad():
        answers = teacher.eval()(*args, **inputs)[0]
    logits = still.train()(*args, **inputs)[0]
    loss = 0.0
    for b in range(len(labels)):
        p, q = (answers[b] / tau).softmax(0), (logits[b] / tau).softmax(0)
        gap = sum(p[c] * (p[c].log() - q[c].log()) for c in range(CLASSES))
        label = -logits[b].log_softmax(0)[labels[b]]
        loss = loss + ((1 - alpha) * label + alpha * tau**2 * gap) / len(labels)
    loss.backward()
    for (name, after), before in zip(student.named_parameters(), still.parameters(), strict=True):
        slope = torch.zeros_like(before) if before.grad is None else before.grad
        torch.testing.assert_close(after, before - rate * slope, atol=2e-5, rtol=1e-3, msg=name)
    assert_same(tensors(teacher), frozen)


@pytest.mark.parametrize("made", [of_images, of_text])
def test_distillation_of_the_labels_alone_is_fine_tuning(made):
    torch.manual_seed(5)
    teacher, student, train = made()
    other = copy.deepcopy(student)
    fit(student, static.distillation(teacher, alpha=0.0), config(max_steps=3), train)
    fit(other, static.fine_tune(), config(max_steps=3), train)
    assert_same(tensors(student), tensors(other))


def test_of_answers_alone_a_student_learns_what_its_teacher_says():
    torch.manual_seed(5)
    teacher, student, train = of_images()
    x = torch.stack([train[row][0] for row in range(len(train))])
    with torch.no_grad():
        said = teacher.eval()(x)[0].softmax(1)

    def gap():
        with torch.no_grad():
            return float(F.kl_div(student.eval()(x)[0].log_softmax(1), said, reduction="batchmean"))

    before = gap()
    fit(student, static.distillation(teacher, alpha=1.0), config(epochs=20), train)
    assert gap() < before / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.1}, r"alpha must be a number in \[0, 1\], got 1.1"),
        ({"alpha": -0.1}, r"alpha must be a number in \[0, 1\], got -0.1"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"teacher": torch.nn.Linear(2, 2)}, "teacher must be a MultiExitModel, got Linear"),
        ({"teacher": mx.MultiExitModel(bert(), 1)}, "at least 2 classes, got 1; .*fine_tune"),
        (
            {"teacher": mx.MultiExitModel(bert(), 3, problem="multi-label")},
            "this teacher's problem is 'multi-label': use static.fine_tune",
        ),
    ],
)
def test_distillation_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        static.distillation(**{"teacher": on(bert()), **options})


def test_distillation_refuses_students_of_other_classes_or_with_the_teachers_weights():
    def named(names, backbone):
        return mx.MultiExitModel(backbone, len(names), exits=[2], labels=list(names))

    teacher = named("abc", bert())
    recipe = static.distillation(teacher)
    for student, message in (
        (named("ab", bert()), "the student has 2 classes, the teacher 3"),
        (named("acb", bert()), r"\['a', 'b', 'c'\], the student's \['a', 'c', 'b'\]"),
        (named("abc", teacher.backbone), "parameters that are the teacher's too"),
        (mx.MultiExitModel(bert(), 3, problem="multi-label"), "student's problem is 'multi-label'"),
    ):
        before = tensors(student)
        with pytest.raises(ValueError, match=message):
            fit(student, recipe, config(max_steps=1), Text())
        assert_same(tensors(student), before)
