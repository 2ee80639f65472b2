"""Heads that answer each token by itself.

Letters: B batch rows, T tokens, H width, K classes.
"""

from torch import Tensor, nn

from multiexit.model.heads.base import Features, VectorHead
from multiexit.model.heads.plain import DROPOUT


class TokenHead(VectorHead):
    """`Linear(dropout(f))` of each token, as BERT tags a sentence, [B, T, H] → [B, T, K].

    Args:
        width: H.
        num_classes: K.

    Example:
        >>> import torch, multiexit as mx
        >>> mx.heads.TokenHead(16, num_classes=9)(torch.rand(2, 5, 16)).shape
        torch.Size([2, 5, 9])

    Reference: Devlin et al., "BERT", NAACL 2019, section 5.3.
    """

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.dropout = nn.Dropout(DROPOUT)
        self.linear = nn.Linear(width, num_classes)

    def vector(self, feature: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        return self.dropout(feature)


def token_heads(name: str, features: Features) -> list[TokenHead]:
    """A head for each exit.

    Args:
        name: `"linear"`; all other heads make one vector of a row.
        features: of layout `"tokens"`.

    Raises:
        ValueError: another name.
    """
    if name != "linear":
        raise ValueError(
            f"the head {name!r} makes one vector of a row, and token-classification has an answer "
            "for each token: use head='linear', or pass a function (feature shape, classes) -> "
            "nn.Module that gives [B, T, classes]"
        )
    return [TokenHead(width, features.num_classes) for width in features.widths]
