"""What learns from rows that are several labels beside the loss matrix: right, or refused."""

import pytest
import torch
from encoders import batch, bert, on
from helpers import Text, config, fit
from torch.nn import functional as F

import multiexit as mx
from multiexit.losses.temperature import Rising
from multiexit.problems import decisions
from multiexit.recipes import Seen, static
from multiexit.recipes.labels import certainty_loss

C = 3


class Several(Text):
    """The same texts with several labels each."""

    def __init__(self):
        super().__init__()
        self.labels = torch.randint(2, (len(self), C))


def several(backbone, exits="all"):
    return mx.MultiExitModel(backbone, C, exits=exits, problem="multi-label")


@pytest.mark.parametrize("problem", ["multi-label", "regression"])
def test_learned_certainties_are_of_whole_rows(problem):
    logits_MBC, u_MB = torch.randn(2, 5, C), torch.rand(2, 5)
    labels = torch.randint(2, (5, C)) if problem == "multi-label" else torch.randn(5, C)
    labels[0] = (logits_MBC[0, 0] > 0).long() if problem == "multi-label" else logits_MBC[0, 0]
    total = 0.0
    for m in range(2):
        for b in range(5):
            pairs = zip(logits_MBC[m, b], labels[b], strict=True)
            if problem == "multi-label":
                wanted = float(all((z > 0) == (y > 0) for z, y in pairs))
            else:
                wanted = min(1 - float((z - y).tanh().abs()) for z, y in pairs)
            total += (float(u_MB[m, b]) - wanted) ** 2 / 10
    seen = Seen((), {}, labels, logits_MBC, u_MB, [], problem)
    assert float(certainty_loss(seen)) == pytest.approx(total, rel=1e-5)


def test_a_rising_temperature_looks_at_each_label():
    sure = torch.tensor([[[5.0, -5.0]], [[4.0, -4.0]]])  # of yes and of no
    rule = Rising(above=0.9)
    assert float(rule.after(torch.tensor(1.0), decisions(sure, "multi-label"))) > 1
    torn = torch.tensor([[[5.0, -5.0]], [[4.0, 0.0]]])
    assert float(rule.after(torch.tensor(1.0), decisions(torn, "multi-label"))) == 1


def test_pkd_refuses_several_labels():
    with pytest.raises(ValueError, match=r"this teacher's problem is 'multi-label': .*Theseus"):
        static.pkd(several(bert()), 3)
    student = several(static.first_layers(bert(), 3))
    with pytest.raises(ValueError, match=r"this student's problem is 'multi-label'"):
        mx.Trainer(student, static.pkd(on(bert()), 3), config())


def test_theseus_and_fine_tuning_serve_several_labels():
    predecessor = several(bert(), exits=[5])
    fit(predecessor, static.fine_tune(), config(max_steps=1), Several())
    ship = static.single_exit(predecessor, static.Theseus(predecessor.backbone, 3))
    history = fit(ship, static.theseus(), config(max_steps=2, lr=0.01), Several())
    assert all(torch.tensor(row["loss"]).isfinite() for row in history.steps)
    assert static.successor(ship).problem == "multi-label"


def test_heads_matter_by_the_loss_of_all_labels():
    """The slopes of torch's own loss, by differences, at a mask of the first layer's first head."""
    model = several(bert().double(), exits=[5]).double().eval()
    inputs, _ = batch(4)
    labels = torch.randint(2, (4, C))
    data = [{**inputs, "labels": labels}]
    found = static.head_importance(model, data, normalise=False)
    attention = model.backbone.layers[0].attention.output.dense

    def losses(xi: float) -> torch.Tensor:
        mask = torch.ones(attention.in_features, dtype=torch.double)
        mask[: len(mask) // len(found[0])] = xi
        handle = attention.register_forward_pre_hook(lambda _, args: (args[0] * mask,))
        with torch.no_grad():
            logits_BC = model(**inputs)[0]
        handle.remove()
        per_label = F.binary_cross_entropy_with_logits(logits_BC, labels.double(), reduction="none")
        return per_label.mean(1)

    slopes = (losses(1 + 1e-5) - losses(1 - 1e-5)).abs() / 2e-5
    assert float(found[0][0]) == pytest.approx(float(slopes.mean()), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("problem", ["multi-label", "regression"])
def test_votes_of_classes_are_refused(problem):
    with pytest.raises(ValueError, match=rf"'\+cascade' votes .* the problem is '{problem}'"):
        mx.MultiExitModel(bert(), C, head="linear+cascade", problem=problem)
