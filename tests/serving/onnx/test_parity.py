"""A model beside graphs that say something else."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import multiexit as mx
from multiexit.serving.onnx import parity


def test_what_a_graph_gives_that_is_no_number_is_named(mlp):
    model, inputs = mlp
    logits_MBC = model(**inputs).detach().numpy().copy()
    logits_MBC[3, 5, 1] = np.inf
    answer = logits_MBC[0], np.zeros(logits_MBC.shape[1], np.int64)
    runner: Any = SimpleNamespace(forward=lambda **_: logits_MBC, predict=lambda **_: answer)
    with pytest.raises(ValueError, match="exit 3 gave NaN or infinite logits for row 5 in its gra"):
        parity.compare(model, mx.FixedExit(0), runner, [inputs], exact=True)
