"""Bounds on what leaving early costs vectors: losses by plain loops, coverage, refusals."""

import math
from dataclasses import replace

import pytest
import torch

import multiexit as mx
from multiexit.evaluation import exit_losses, guarantee

COST = mx.Cost((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4), full_macs=4)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def outputs_of(rows: int, seed: int = 0, D: int = 8) -> mx.Outputs:
    """Four exits that come nearer to the last one, for some rows sooner than for others."""
    generator = torch.Generator().manual_seed(seed)
    last_BD = torch.randn(rows, D, generator=generator)
    ease_B1 = torch.rand(rows, 1, generator=generator)
    vectors = [
        unit(last_BD + scale * ease_B1 * torch.randn(rows, D, generator=generator))
        for scale in (1.5, 0.8, 0.4, 0.0)
    ]
    vectors_MBD = torch.stack(vectors)
    keys_B = torch.arange(rows) + 1_000_000 * seed
    return mx.Outputs(vectors_MBD, vectors_MBD[-1], COST, "cosine", None, keys_B, "embedding")


CORPUS = unit(torch.randn(200, 8, generator=torch.Generator().manual_seed(9)))


def test_the_losses_are_what_plain_loops_say():
    outputs = outputs_of(30)
    early_BD, full_BD = outputs.logits_MBC[0], outputs.logits_MBC[-1]
    for k in (1, 5):
        wanted = []
        for v, u in zip(early_BD, full_BD, strict=True):
            nearest = max(range(200), key=lambda n, u=u: float(CORPUS[n] @ u))
            order = sorted(range(200), key=lambda n, v=v: -float(CORPUS[n] @ v))
            wanted.append(float(nearest not in order[:k]))
        kind = f"rank@{k}"
        (loss_B,) = exit_losses.losses(early_BD[None], full_BD, full_BD, kind, corpus_NC=3 * CORPUS)
        assert loss_B.tolist() == wanted
        assert 0 < sum(wanted) < 30
    (loss_B,) = exit_losses.losses(early_BD[None], full_BD, full_BD, "cosine")
    wanted = [(1 - float(v @ u)) / 2 for v, u in zip(early_BD, full_BD, strict=True)]
    assert loss_B.tolist() == pytest.approx(wanted, abs=1e-6)
    opposite_B = exit_losses.losses(-full_BD[None], full_BD, full_BD, "cosine")
    torch.testing.assert_close(opposite_B, torch.ones(1, 30, dtype=torch.float64))


TRIALS = 400


@pytest.mark.parametrize(("loss", "risk"), [("cosine", 0.06), ("rank@5", 0.1)])
def test_the_bound_is_kept_as_often_as_promised(loss, risk):
    everyone, corpus = outputs_of(4000, seed=1), CORPUS if loss != "cosine" else None
    settings = [mx.Settled(threshold) for threshold in torch.linspace(0, 1, 40).tolist()]
    loss_SP = torch.stack(
        [
            exit_losses.losses_of(everyone, answer_BD[None], loss, corpus)[0]
            for answer_BD in (everyone.answers(setting)[1] for setting in settings)
        ]
    )
    found = []
    for seed in range(TRIALS):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(4000, (200,), generator=generator)
        index = guarantee.learn_then_test(loss_SP[:, rows], risk, 0.2)
        found.append(0.0 if index is None else float(loss_SP[index].mean()))
        if seed < 3:
            # The same on the way that users go, among more thresholds.
            few = replace(everyone.take(rows), keys_B=None)
            policy = mx.calibrate(
                few, mx.Settled, risk=risk, loss=loss, corpus=corpus, confidence=0.8
            )
            true = exit_losses.realised(everyone, policy, loss, corpus)
            assert abs(true - found[-1]) < risk / 2
    broken = sum(true > risk for true in found)
    assert broken <= 0.2 * TRIALS + 3 * math.sqrt(0.16 * TRIALS)
    assert sum(found) / TRIALS > risk / 3, "a bound that certifies next to nothing is no use"


def test_a_bound_is_the_one_that_all_losses_at_once_give():
    outputs = outputs_of(300)
    policy = mx.calibrate(outputs, mx.Settled, risk=0.05)
    certificate = policy.certificate
    assert (certificate.loss, certificate.rows) == ("cosine", 300)
    assert certificate.observed == pytest.approx(exit_losses.realised(outputs, policy, "cosine"))
    again = mx.policies.from_json(mx.policies.to_json(policy))
    assert (again, again.certificate) == (policy, certificate)
    with pytest.raises(ValueError, match="calibrated on"):
        mx.judge(outputs, policy)
    assert mx.judge(outputs_of(300, seed=2), policy).speedup_layers > 1
    ranked = mx.calibrate(outputs, mx.Settled, risk=0.2, loss="rank@5", corpus=CORPUS).certificate
    assert ranked.loss == "rank@5"


def test_other_targets():
    outputs = outputs_of(300)
    fast = mx.calibrate(outputs, mx.Settled, speedup=1.5)
    assert mx.judge(outputs, fast).speedup_layers >= 1.5
    good = mx.calibrate(outputs, mx.Settled, score=0.97)
    assert mx.judge(outputs, good).score >= 0.97


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"risk": 0.1, "loss": "accuracy"}, "loss 'accuracy' isn't one of vectors; cosine"),
        ({"risk": 0.1, "loss": "rank"}, "no loss 'rank'"),
        ({"risk": 0.1, "loss": "rank@0"}, "no loss 'rank@0'"),
        ({"risk": 0.1, "loss": "rank@5"}, "pass corpus=, the last exit's vectors of more than 5"),
        ({"risk": 0.1, "loss": "rank@5", "corpus": CORPUS[:5]}, "of more than 5 other rows"),
        ({"risk": 0.1, "loss": "rank@5", "corpus": CORPUS[:, :7]}, r"floats \[N, 8\]"),
        ({"risk": 0.1, "loss": "rank@5", "corpus": 0 * CORPUS}, "0, NaN or infinite"),
        ({"risk": 0.1, "corpus": CORPUS}, "a corpus goes with a risk and a loss"),
        ({"speedup": 2.0, "corpus": CORPUS}, "a corpus goes with a risk and a loss"),
        (
            {"risk": 0.1, "loss": "rank@5", "corpus": outputs_of(300).labels_B},
            "holds all 300 rows to calibrate on",
        ),
    ],
)
def test_what_can_t_be_calibrated_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        mx.calibrate(outputs_of(300), mx.Settled, **options)


def test_losses_of_vectors_are_none_of_classes():
    logits_MBC = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(0))
    cost = mx.Cost((1, 2), (1, 2), (1, 2), full_macs=2)
    classes = mx.Outputs(logits_MBC, torch.arange(200) % 3, cost)
    with pytest.raises(ValueError, match="loss 'cosine' isn't one of classes"):
        mx.calibrate(classes, mx.MaxProb, risk=0.1, loss="cosine")
    with pytest.raises(ValueError, match="outputs of an embedding are vectors"):
        mx.calibrate(outputs_of(300), mx.MaxProb, risk=0.1)
