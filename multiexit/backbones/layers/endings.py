"""The end of a network, behind its layers: found in a run, described, and made a head of its own.

Letters: B batch rows, T tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from multiexit.backbones.classifier import NetworkHead
from multiexit.backbones.layers import tails
from multiexit.backbones.layers.recording import Recording


class Ending(NamedTuple):
    """The end of a network, behind its layers.

    Args:
        norm: a module's name, None where there is none or it is of the last stage alone.
        names: of the rest (`tails.find_tail`).
    """

    norm: str | None
    names: list[str]


def find_ending(
    module: nn.Module, recording: Recording, target: Tensor, valid_BT: Tensor | None
) -> Ending | None:
    """Find what leads from the last layer to the network's answer; None where it can't be told."""
    x = recording.features[-1]
    end = max(call.ended for call in recording.calls if call.name == recording.chain.layers[-1])
    calls = sorted((c for c in recording.calls if c.began > end), key=lambda call: call.began)
    names = tails.find_tail(calls, x, target, valid_BT)
    if names is None:
        return None
    is_even = len({feature.shape for feature in recording.features}) == 1
    norm, rest = tails.split_norm(names, module) if is_even else (None, names)
    return Ending(norm, rest)


def with_real_tokens(ending: Ending) -> Ending:
    """An ending of a network of texts that takes the real tokens where it takes all.

    It is the same for rows by themselves, and so is the last token where padding comes first, as a
    network that takes the last one has it.
    """
    real = {"last-of-all": "last", "mean-of-all": "mean"}
    return ending._replace(names=[real.get(name, name) for name in ending.names])


def described_ending(spec: Mapping[str, Any]) -> Ending | None:
    """An ending from its description in a backbone's spec; None where there is none."""
    return Ending(spec.get("norm"), list(spec["tail"])) if "tail" in spec else None


def describe(ending: Ending | None) -> dict[str, Any]:
    """An ending's description, for a spec."""
    return {} if ending is None else {"norm": ending.norm, "tail": ending.names}


def classifier(
    module: nn.Module, ending: Ending, classes: int, labels: Sequence[str] | None = None
) -> NetworkHead | None:
    """The network's own head; None where what it does can't be told."""
    halves = tails.split_last(ending.names, module)
    if halves is None:
        return None
    before, last = halves
    read = tails.Tail(tails.parts(before, module))
    return NetworkHead(module.get_submodule(last), classes, read, labels)
