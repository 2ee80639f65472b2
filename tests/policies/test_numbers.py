"""A policy's numbers: NumPy's and torch's become plain, what is none is named."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from test_policies import Gap

import multiexit as mx
from multiexit import policies

BAD = [
    (lambda: mx.Entropy(math.nan), "threshold must be a finite number, got nan"),
    (lambda: mx.MaxProb("0.5"), "threshold must be a finite number, got '0.5'"),
    (lambda: mx.Margin(math.inf), "finite"),
    (lambda: mx.Patience(0), "patience must be a whole number from 1, got 0"),
    (lambda: mx.Patience(2.0), "whole number"),
    (lambda: mx.Patience(True), "whole number"),
    (lambda: mx.Patience(1, tolerance=math.nan), "tolerance must be a finite number"),
    (lambda: mx.PatientConfident(0.5, 0), "whole number"),
    (lambda: mx.FixedExit(-1), "exit must be an index from 0, got -1"),
    (lambda: mx.FixedExit(1.0), "index from 0"),
    (lambda: mx.MaxProb(True), "threshold must be a finite number, got True"),
    (lambda: mx.MaxProb(np.float32("nan")), "threshold must be a finite number, got nan"),
    (lambda: mx.MaxProb(10**400), "finite number"),
    (lambda: mx.MaxProb((0.5, math.nan)), "threshold must be a finite number, got nan"),
    (lambda: mx.MaxProb(()), "one per exit; got none"),
    (lambda: mx.MostConfident((0.5, 0.6)), "finite number"),
    (lambda: mx.Beem(0.5, 0.0), "weight must be above 0, got 0.0"),
    (lambda: mx.Beem(0.5, (0.5, -1.0)), "weight must be above 0, got -1.0"),
    (lambda: mx.Patience(10**30), "whole number"),
    (lambda: mx.Patience(np.float64(2)), "whole number from 1, got 2.0"),
    (lambda: mx.Patience(1, tolerance=0.0), "tolerance must be above 0, got 0.0"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_bad_numbers_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (lambda: mx.MaxProb(np.float64(0.5)), mx.MaxProb(0.5)),
        (lambda: mx.MaxProb(np.array([0.5, 0.25])), mx.MaxProb((0.5, 0.25))),
        (lambda: mx.MaxProb([torch.tensor(0.5), np.float32(0.25)]), mx.MaxProb((0.5, 0.25))),
        (lambda: mx.Patience(np.int32(3)), mx.Patience(3)),
        (lambda: mx.Patience(3, np.float32(0.5)), mx.Patience(3, 0.5)),
        (lambda: mx.FixedExit(torch.tensor(2)), mx.FixedExit(2)),
        (lambda: Gap(np.float64(0.5)), Gap(0.5)),
        (lambda: mx.Entropy(Fraction(1, 4)), mx.Entropy(0.25)),
    ],
)
def test_numbers_of_numpy_and_torch_become_plain(made, wanted):
    policy = made()
    assert repr(policy) == repr(wanted)
    assert policies.from_json(json.loads(json.dumps(policies.to_json(policy))), [Gap]) == wanted


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (mx.MaxProb(np.float32(0.5)), mx.MaxProb(0.5)),
        (mx.MaxProb(torch.tensor(0.5)), mx.MaxProb(0.5)),
        (mx.Margin(np.array([0.5, 0.25])), mx.Margin((0.5, 0.25))),
        (mx.Entropy([np.float16(0.5), 1]), mx.Entropy((0.5, 1))),
        (mx.MostConfident(np.float64(0.5)), mx.MostConfident(0.5)),
        (mx.Patience(np.int64(3), np.float32(0.5)), mx.Patience(3, 0.5)),
        (mx.PatientConfident(np.float32(0.5), np.int8(2)), mx.PatientConfident(0.5, 2)),
        (mx.FixedExit(np.int32(2)), mx.FixedExit(2)),
    ],
)
def test_numbers_of_numpy_and_tensors_are_taken_as_plain_ones(made, wanted):
    assert made == wanted
    assert hash(made) == hash(wanted)
    json.dumps(mx.policies.to_json(made))


@pytest.mark.parametrize("value", [True, None, "a", np.nan, 10**400, -(10**400), np.array([]), {}])
def test_what_is_no_number_makes_no_policy(value):
    for kind in (mx.MaxProb, mx.Entropy, mx.MostConfident, mx.Patience, mx.FixedExit):
        with pytest.raises(ValueError, match=r"threshold|patience|exit"):
            kind(value)
