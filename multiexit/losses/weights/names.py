"""Parametrisations of Ω by name."""

from collections.abc import Callable

from torch import Tensor

from multiexit.losses.weights.ascending import Ascending, GroupDRO, Normalized
from multiexit.losses.weights.parametrisations import (
    LossWeights,
    RawWeights,
    SoftmaxWeights,
    UncertaintyWeights,
)

Parametrization = Callable[[Tensor], LossWeights]
"""`teaches_MM -> weights`, uniform at first."""

ASCENDING: dict[str, Parametrization] = {
    "softmax-ascent": lambda teaches_MM: Ascending(SoftmaxWeights(teaches_MM)),
    "softmax-ascent-normalized": lambda teaches_MM: Normalized(
        Ascending(SoftmaxWeights(teaches_MM))
    ),
    "group-dro": GroupDRO,
    "group-dro-normalized": lambda teaches_MM: Normalized(GroupDRO(teaches_MM)),
}
"""Those whose Ω makes the loss large."""

PARAMETRIZATIONS: dict[str, Parametrization] = {
    "softmax": SoftmaxWeights,
    "raw": RawWeights,
    "uncertainty": UncertaintyWeights,
    **ASCENDING,
}
