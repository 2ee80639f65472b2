"""Policies as JSON, and as they are typed."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import linear_chain
from test_policies import CLASSIFY, REGRESS, Gap

import multiexit as mx
from multiexit import policies
from multiexit.policies import registry
from multiexit_runner.turning import typed_policy


@pytest.mark.parametrize("policy", [*CLASSIFY, *REGRESS], ids=repr)
def test_json_and_back(policy):
    text = json.dumps(policies.to_json(policy))
    assert policies.from_json(json.loads(text)) == policy


def test_a_saved_policy_of_ones_own_must_be_passed():
    data = policies.to_json(Gap(0.5))
    with pytest.raises(ValueError, match=r"pass policies=\[Gap\]"):
        policies.from_json(data)
    assert policies.from_json(data, [Gap]) == Gap(0.5)


@dataclass(frozen=True)
class Config:
    scale: float


@dataclass(frozen=True)
class Configured(Gap):
    config: "Any" = None


@dataclass(frozen=True)
class Elsewhere(Gap):
    config: "Missing" = None  # noqa: F821 # type: ignore[name-defined]


@pytest.mark.parametrize("config", [Config(2.0), [Config(2.0)], {"one": Config(2.0)}])
def test_what_would_come_back_as_something_else_is_not_saved(config, tmp_path):
    model = linear_chain()
    model.policy = Configured(0.5, config=config)
    with pytest.raises(ValueError, match=r"can't be saved: .*Config.* is no plain data"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"policy.config.* is Config.* must be plain"):
        mx.export(model.eval(), tmp_path / "new", model.policy)


def test_a_type_that_is_not_there_is_named():
    logits_MBC, labels_B = torch.randn(4, 9, 3), torch.arange(9) % 3
    outputs = mx.Outputs(logits_MBC, labels_B, linear_chain().cost())
    with pytest.raises(ValueError, match=r"Elsewhere's fields can't be read, as name 'Missing'"):
        mx.calibrate(outputs, Elsewhere, speedup=1.1)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("patience=4", mx.Patience(4)),
        ("patience=4,0.5", mx.Patience(4, 0.5)),
        ("entropy=0.3", mx.Entropy(0.3)),
        ("max-prob=0.9", mx.MaxProb(0.9)),
        ("patient-confident=0.2,3", mx.PatientConfident(0.2, 3)),
        ("fixed=5", mx.FixedExit(5)),
    ],
)
def test_read_as_typed(text, wanted):
    assert policies.parse(text) == wanted


@pytest.mark.parametrize(
    "text", ["", "patience", "patience=x", "patience=0", "patience=1.5", "sure=1", "entropy=nan",
             "fixed=-1", "max-prob=0_9", "patience=1_0",
             "patience=1,2,3", "patient-confident=0.2", "margin=1,2"],
)  # fmt: skip
def test_what_cannot_be_read_is_named(text):
    with pytest.raises(ValueError, match=r"no policy|can't read policy|takes") as refused:
        policies.parse(text)
    assert "__init__" not in str(refused.value)


@pytest.mark.parametrize("name", policies.POLICIES)
def test_what_is_printed_of_a_setting_is_the_setting(name):
    """Of a sweep's short ones, of the many that calibration tries, and of any other."""
    kind, known = policies.POLICIES[name], policies.Known(6, 3)
    shown = policies.sweep_settings(kind, known)
    for policy in [*shown, *policies.one_number(shown[0], known)]:
        assert policies.parse(registry.policy_name(policy)) == policy
    assert max(len(registry.policy_name(policy)) for policy in shown) <= len(name) + 10
    assert policies.parse(registry.policy_name(mx.MaxProb(0.1 + 0.2))) == mx.MaxProb(0.1 + 0.2)


@pytest.mark.parametrize("name", policies.POLICIES)
def test_an_export_types_policies_as_the_library_does(name):
    policy = policies.sweep_settings(policies.POLICIES[name], policies.Known(4, 3))[0]
    typed = typed_policy(policies.to_json(policy))
    assert typed.partition("=")[0] == name
    assert policies.parse(typed) == policy
