"""How images are read for a network, as the network says itself."""

from typing import Any

from torch import nn

from multiexit.backbones.kinds import KINDS
from multiexit.backbones.vision.own_images import OwnImages, described
from multiexit.backbones.wrapping import no_model

LEVELS = 3.0
"""Of 255, by which two libraries' resized pixels may differ."""


def image_preparation(
    network: str | nn.Module, pretrained: bool = True, whole: bool = True
) -> dict[str, Any] | None:
    """How images are read for a network, as it says itself.

    Of transformers its image processor says so, of timm `pretrained_cfg`, of torchvision the
    transforms of its weights. Pictures are read both ways, and the pixels compared.

    Args:
        network: a name, as for `multiexit.wrap`, or an instance of timm, or of transformers that
            was loaded by a name.
        pretrained: whether a network of torchvision comes with its weights; only they say it.
        whole: whether more is asked than the shape.

    Returns:
        The description, for `multiexit.data.load(…, preparation=…)`; of a network that says its
        size alone, the shape; None where it says nothing.

    Raises:
        ValueError: no such network; a way to read images that the description can't say.

    Example:
        >>> import multiexit as mx
        >>> how = mx.image_preparation("timm:resnet10t")
        >>> how["shape"], how["resize"], how["interpolation"]
        ([3, 176, 176], 201, 'bicubic')
    """
    own = _said(network, pretrained)
    if own is None or isinstance(own, dict):
        return own
    how, apart = described(own)
    if not whole:
        return {"shape": how["shape"]}
    if apart > LEVELS:
        raise ValueError(
            f"{own.what} reads images in a way that a description here can't say: let ImageNet's "
            "way do for them (--normalisation imagenet; in Python, leave preparation out), or "
            "train in Python on a set whose pixels are made by its own code"
        )
    return how


def _said(network: str | nn.Module, pretrained: bool) -> OwnImages | dict[str, Any] | None:
    if isinstance(network, str):
        kinds = [k for k in KINDS.values() if k.prefix and network.startswith(k.prefix)]
        kind = kinds[0] if kinds else KINDS["transformers"]
        name = network.removeprefix(kind.prefix or "")
        try:
            return kind.images().from_name(name, pretrained) if kind.images else None
        except ValueError:
            raise
        except Exception as error:  # as for `wrap`
            raise no_model(network, error) from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"a network or its name is asked, got a {type(network).__name__}")
    libraries = {base.__module__.partition(".")[0] for base in type(network).__mro__}
    for kind in KINDS.values():
        if kind.library in libraries and kind.images is not None:
            return kind.images().from_instance(network)
    return None
