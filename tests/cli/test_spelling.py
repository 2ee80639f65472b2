"""The library's errors, spelled as commands are typed."""

import pytest

import multiexit as mx
from multiexit.cli.spelling import as_typed
from multiexit.policies import POLICIES, parse
from multiexit.policies.registry import policy_name

OPTIONS = {
    name: f"--{name.replace('_', '-')}"
    for name in ("omega_lr", "lr", "download", "resume", "head", "output", "epochs", "weights")
}


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("omega_lr: 'joint' learns none", "--omega-lr: 'joint' learns none"),
        ("lr must be above 0, got 0.0", "--lr must be above 0, got 0.0"),
        ("epochs and omega_lr: give one", "--epochs and --omega-lr: give one"),
        ("download=True is for cifar10", "--download is for cifar10"),
        ("it holds a run: resume=True goes on", "it holds a run: --resume goes on"),
        ("use head='own-pooler' or head='linear'", "use --head own-pooler or --head linear"),
        ("trackers need a folder: set output=", "trackers need a folder: set --output"),
        ("set epochs=3, or omega_lr=0.1.", "set --epochs 3, or --omega-lr 0.1."),
        ("differs in config lr (0.1 there)", "differs in --lr (0.1 there)"),
    ],
)
def test_options_are_spelled_as_typed(message, wanted):
    assert as_typed(message, OPTIONS) == wanted


@pytest.mark.parametrize(
    "message",
    [
        "the weights in /data/omega_lr/lr don't fit: the head, the output",
        "there is no 'omega_lr' here",
        "backbone.head is 3",
        "weights.safetensors is damaged",
        "no setting called warm_up",
    ],
)
def test_other_words_stay(message):
    assert as_typed(message, OPTIONS) == message


@pytest.mark.parametrize("word", ["lr", "omega_lr", "my omega_lr", "head=Patience", "a/Patience"])
def test_what_was_typed_stays(word):
    for message in ("{} is no folder", "no folder {}: epochs=3", "lr/{}/x and download=True, {!r}"):
        wanted = as_typed(message, OPTIONS).format(word, word)
        for typed in (word, f"./{word}", f"--data={word}"):
            assert as_typed(message.format(word, word), OPTIONS, ["train", typed]) == wanted


@pytest.mark.parametrize(
    "policy",
    [*map(parse, ("max-prob=0.9/0.8", "patience=2", "patient-confident=0.2,3", "fixed=1"))],
)
def test_policies_are_spelled_as_typed(policy):
    message = as_typed(f"the best, {policy}, scores 0.5", {})
    assert message == f"the best, {policy_name(policy)}, scores 0.5"
    assert parse(policy_name(policy)) == policy


def test_their_classes_go_by_their_names():
    for name, kind in POLICIES.items():
        assert as_typed(f"no setting of {kind.__name__} will do", {}) == (
            f"no setting of {name} will do"
        )
    form = "use Patience(patience, tolerance=…) or FixedExit"
    assert as_typed(form, {}) == "use patience=PATIENCE,TOLERANCE or fixed"
    assert as_typed(f"such as {mx.Patience(4)}; Patience(4)", {}) == (
        "such as patience=4; patience=4"
    )
    assert as_typed("Loud(1.0) and MaxProbs(2)", {}) == "Loud(1.0) and MaxProbs(2)"
