"""Losses of recent steps, read: by hand."""

import warnings

import pytest
import torch

from multiexit.training.stepper import StepRecord
from multiexit.training.unread import UnreadLosses


def record(step, own, rows=4, W_MM=None, labelled=True):
    """A step whose two exits have these losses of their own, and nobody teaches."""
    L_MM = torch.tensor(own).diag()
    return StepRecord(step, L_MM.sum(), L_MM, torch.eye(2), W_MM, rows, 0.1 * (step + 1), labelled)


def unread_of(*records):
    unread = UnreadLosses()
    unread.steps.extend(records)
    return unread


def test_a_short_step_counts_less_and_the_last_rate_is_said():
    unread = unread_of(record(0, [1.0, 2.0]), record(1, [4.0, 2.0], rows=2))
    assert unread.read() == {"loss": 4.0, "own_M": [2.0, 2.0], "lr": 0.2}
    assert unread.read() == {}


def test_steps_without_labels_have_no_losses_of_their_own():
    assert unread_of(record(0, [1.0, 2.0], labelled=False)).read() == {"loss": 3.0, "lr": 0.1}


def test_weights_are_the_last_step_s_and_only_of_terms_that_count():
    first, last = torch.ones(2, 2), torch.tensor([[0.5, 0.25], [0.25, 1.5]])
    unread = unread_of(record(0, [1.0, 2.0], W_MM=first), record(1, [1.0, 2.0], W_MM=last))
    assert unread.read()["W_MM"] == [[0.5, None], [None, 1.5]]


def test_weights_that_end_a_term_are_warned_of_once():
    unread = unread_of(record(0, [1.0, 2.0], W_MM=torch.tensor([[-0.5, 1], [1, 1]])))
    with pytest.warns(UserWarning, match="a loss weight has fallen to -0.500"):
        unread.read()
    unread.steps.append(record(1, [1.0, 2.0], W_MM=torch.zeros(2, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unread.read()


def test_a_check_reads_nothing():
    unread = unread_of(record(0, [1.0, 2.0]))
    unread.check()
    assert len(unread.steps) == 1


def test_what_is_not_finite_is_named_with_its_step():
    with pytest.raises(FloatingPointError, match="exit 1's own loss is nan at step 6"):
        unread_of(record(5, [1.0, 1.0]), record(6, [1.0, float("nan")])).check()
    with pytest.raises(FloatingPointError, match="loss weights are NaN or infinite after step 7"):
        unread_of(record(6, [1.0, 1.0], W_MM=torch.full((2, 2), float("inf")))).check()
