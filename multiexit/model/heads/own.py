"""The head that a network came with, as its last exit.

Letters: B batch rows, D of the vector that the last layer reads.
"""

from torch import Tensor

from multiexit.backbones.classifier import NetworkHead, vector
from multiexit.model.heads.base import VectorHead


class OwnHead(VectorHead):
    """The network's own `linear(read(f))`, so that the last exit answers as the network does.

    Args:
        classifier: its modules are shared, as the backbone's are.

    Example:
        >>> import torch, multiexit as mx
        >>> own = mx.NetworkHead(torch.nn.Linear(8, 3), num_classes=3, read="mean")
        >>> mx.heads.OwnHead(own)(torch.rand(2, 8, 4, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(self, classifier: NetworkHead):
        super().__init__()
        self.read = classifier.read
        self.linear = classifier.linear

    def vector(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return vector(self.read, feature, valid_BT)
