"""ResNet-20/32/44/56/110 for 32×32 images (He et al. 2016, section 4.2).

Letters: B batch rows, C channels, H height and width.
"""

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from multiexit.backbones.sequential import SequentialBackbone
from multiexit.files import weights as stored
from multiexit.files.unreadable import one_line

DEPTHS = (20, 32, 44, 56, 110)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and an option-A shortcut: stride, and zeros for the new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.extra = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.extra:
            half = self.extra // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        return F.relu(x + y, inplace=True)


def cifar_resnet(
    depth: int, weights: str | Path | None = None, in_channels: int = 3, size: int = 32
) -> SequentialBackbone:
    """A CIFAR ResNet with one stage per residual block, so 27 possible exits at depth 56.

    Depth 56 has 852,368 parameters without its classifier's 650 on CIFAR-10, and 125.5 M MACs.

    Args:
        depth: 20, 32, 44, 56 or 110, that is 6n + 2.
        weights: a safetensors file, or a folder with `model.safetensors`, in the usual layout
            (`conv1`, `bn1`, `layer1.0.conv1`, …, `linear`); `linear` starts the last exit.
        in_channels: 3 for colour, 1 for grey images.
        size: height and width that exits with a spatial pooling are made for.

    Raises:
        ValueError: another depth, or weights that don't fit.

    Example:
        >>> import multiexit as mx
        >>> backbone = mx.cifar_resnet(20)
        >>> backbone.num_stages, backbone.feature_shapes[-1]
        (9, (64, 8, 8))

    Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
    """
    if depth not in DEPTHS:
        raise _no_depth(depth)
    stem = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, 16, 3, 1, 1, bias=False),
            bn1=nn.BatchNorm2d(16),
            relu=nn.ReLU(),
        )
    )
    per_group = (depth - 2) // 6
    blocks, width = [], 16
    for group, outputs in enumerate((16, 32, 64)):
        for index in range(per_group):
            stride = 2 if group > 0 and index == 0 else 1
            blocks.append(BasicBlock(width, outputs, stride))
            width = outputs
    for module in [*stem.modules(), *(m for block in blocks for m in block.modules())]:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    classifier = None if weights is None else _load(weights, stem, blocks)
    return SequentialBackbone(
        stem,
        blocks,
        example=torch.zeros(1, in_channels, size, size),
        spec={"kind": "cifar_resnet", "depth": depth, "in_channels": in_channels, "size": size},
        classifier=classifier,
    )


def from_name(depth: str, **kwargs: Any) -> SequentialBackbone:
    """Make the CIFAR ResNet of a depth as typed; `kwargs` go to `cifar_resnet`.

    Raises:
        ValueError: another depth, arguments that it doesn't take.
    """
    if depth not in map(str, DEPTHS):
        raise _no_depth(int(depth) if re.fullmatch("[0-9]{1,4}", depth) else depth)
    try:
        return cifar_resnet(int(depth), **kwargs)
    except TypeError as error:
        raise ValueError(f"cifar-resnet-{depth}: {error}") from error


def names() -> list[str]:
    """The depths that there are, as typed."""
    return list(map(str, DEPTHS))


def _no_depth(depth: Any) -> ValueError:
    """The error for another depth: it says which is nearest, and which there are."""
    near = ""
    if isinstance(depth, int):
        near = f", the nearest is {min(DEPTHS, key=lambda known: abs(known - depth))}"
    return ValueError(
        f"no CIFAR ResNet of depth {depth!r}{near}; depths are 6n + 2: "
        f"{', '.join(map(str, DEPTHS))}"
    )


def from_spec(spec: dict[str, Any]) -> SequentialBackbone:
    """Make the architecture of a saved spec, with random weights."""
    sizes = {key: value for key, value in spec.items() if key not in ("kind", "classifier")}
    return cifar_resnet(**sizes)


def _load(path: str | Path, stem: nn.Sequential, blocks: list[BasicBlock]) -> nn.Linear | None:
    """Fill stem and blocks from a file of the usual layout; return its classifier."""
    path = Path(path)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.exists():
        raise ValueError(f"no weights at {path}; give a safetensors file or a folder with one")
    tensors = stored.tensors(path)
    whole = nn.ModuleDict({"stem": stem, "blocks": nn.ModuleList(blocks)})
    per_group = len(blocks) // 3
    renamed = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".")
        if head in ("layer1", "layer2", "layer3"):
            index, _, rest = rest.partition(".")
            if not index.isdecimal():
                raise ValueError(f"the weights in {path} don't fit this ResNet: {name} is no block")
            block = (int(head.removeprefix("layer")) - 1) * per_group + int(index)
            renamed[f"blocks.{block}.{rest}"] = tensor
        elif head != "linear":
            renamed[f"stem.{name}"] = tensor
    try:
        whole.load_state_dict(renamed)
    except RuntimeError as error:
        why = one_line(error)
        raise ValueError(f"the weights in {path} don't fit this ResNet: {why}") from error
    if "linear.weight" not in tensors or "linear.bias" not in tensors:
        return None
    weight, bias = tensors["linear.weight"], tensors["linear.bias"]
    if weight.shape[1:] != (64,) or bias.shape != weight.shape[:1]:
        raise ValueError(f"the weights in {path} don't fit this ResNet: {weight.shape=}")
    classifier = nn.Linear(64, len(weight))
    classifier.load_state_dict({"weight": weight, "bias": bias})
    return classifier
