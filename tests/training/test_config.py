"""Settings of a run: ranges, kinds of number, and what has no effect."""

import json
import math
import os

import numpy as np
import pytest

import multiexit as mx


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", -1),
        ("batch_size", 0),
        ("accumulation", 0),
        ("log_every", 0),
        ("max_steps", 0),
        ("checkpoint_every", 0),
        ("keep_checkpoints", 0),
        ("early_stopping", 0),
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("omega_lr", 0.0),
        ("omega_lr", math.nan),
        ("warmup", -0.1),
        ("warmup", 1.0),
        ("warmup", math.nan),
        ("optimizer", "adam"),
        ("schedule", "exponential"),
        ("mixed_precision", "int8"),
        ("metric", "bleu"),
        ("clip", 0.0),
        ("clip", -1.0),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
        ("momentum", 1.5),
        ("milestones", (3.0,)),
        ("milestones", (math.nan,)),
        ("milestones", 0.5),
        ("milestones", "0.5"),
        ("milestones", ("0.5",)),
        ("workers", -1),
        ("epochs", True),
        ("epochs", 2.0),
        ("epochs", "3"),
        ("epochs", None),
        ("epochs", math.nan),
        ("seed", 2**32),
        ("seed", -1),
        ("early_stopping", False),
        ("lr", "0.1"),
        ("lr", True),
        ("lr", None),
        ("lr", 1j),
        ("ema", 1.0),
        ("ema", "0.9"),
        ("clip", math.inf),
        ("clip", "1"),
        ("warmup", "0.1"),
        ("compile", 1),
        ("progress", "no"),
        ("resume", None),
        ("overwrite", 0),
        ("optimizer", None),
        ("optimizer", ["sgd"]),
        ("schedule", 3),
        ("mixed_precision", False),
        ("trackers", "wandb"),
        ("trackers", (1,)),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=name) as caught:
        mx.TrainConfig(**{name: value})
    assert str(value).strip("(),[]'") in str(caught.value)


def test_numbers_of_numpy_become_plain_ones(tmp_path):
    settings = mx.TrainConfig(
        epochs=np.int64(2),
        seed=np.uint8(3),
        lr=np.float32(0.5),
        clip=np.float64(2),
        compile=np.bool_(False),
        milestones=np.array([0.25, 0.5]),
        schedule="step",
        trackers=[],
        output=os.fspath(tmp_path),
    )
    values = vars(settings)
    assert json.loads(json.dumps(values)) == {**values, "milestones": [0.25, 0.5], "trackers": []}
    assert settings == mx.TrainConfig(
        epochs=2,
        seed=3,
        lr=0.5,
        clip=2.0,
        milestones=(0.25, 0.5),
        schedule="step",
        output=str(tmp_path),
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"milestones": (0.1,)}, r"milestones=\(0.1,\) has no effect with schedule='linear'"),
        ({"momentum": 0.5}, "momentum=0.5 has no effect with optimizer='adamw'"),
        ({"checkpoint_every": 5}, "checkpoint_every=5 has no effect with output=None"),
        ({"keep_checkpoints": 5}, "keep_checkpoints=5 has no effect with output=None"),
    ],
)
def test_what_has_no_effect_is_named(changes, said):
    with pytest.warns(UserWarning, match=said) as told:
        mx.TrainConfig(**changes)
    assert told[0].filename == __file__


def test_resuming_needs_a_folder():
    with pytest.raises(ValueError, match="output"):
        mx.TrainConfig(resume=True)
