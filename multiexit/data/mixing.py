"""MixUp and CutMix: each image of a batch with a part of the next one, and of its label.

Letters: B batch rows, C classes or labels, H height, W width.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from multiexit.data.batches import as_mapping


class Mixing:
    """Mixes a batch's rows with the rows before them, labels as images, by one λ for the batch

        x_b ← λ x_b + (1 − λ) x_{b−1}  or a box of x_{b−1} in x_b;    q_b ← λ q_b + (1 − λ) q_{b−1}

    λ is drawn from Beta(α, α); of CutMix it is the share of the area that x_b keeps. With both, a
    batch gets one or the other, each half of the time. These are torchvision's, which draw from
    torch's global CPU generator.

    Args:
        mixup, cutmix: α of each; None leaves it out.
        num_classes: C, of labels that are numbers of classes.

    Example:
        >>> import torch
        >>> images_BCHW, labels_B = torch.eye(2)[:, :, None, None], torch.tensor([0, 1])
        >>> _ = torch.manual_seed(0)
        >>> mixed_BCHW, shares_BC = Mixing(1.0, None, num_classes=2)((images_BCHW, labels_B))
        >>> torch.equal(mixed_BCHW.flatten(1), shares_BC), shares_BC.sum(1)
        (True, tensor([1., 1.]))

    Reference: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, section 2; Yun
    et al., "CutMix", ICCV 2019, section 3.1.
    """

    def __init__(self, mixup: float | None, cutmix: float | None, num_classes: int):
        from torchvision.transforms import v2  # takes a while, and text needs none of it

        kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        mixes = [kind(alpha=alpha, num_classes=num_classes) for kind, alpha in kinds if alpha]
        self._mix = v2.RandomChoice(mixes)

    def __call__(self, batch: Any) -> Any:
        """A batch `(images [B, C, H, W], labels)`, or a mapping with these, mixed; labels [B, C].

        Raises:
            ValueError: another batch, or images that are no floating-point numbers.
        """
        batch = as_mapping(batch)
        if isinstance(batch, Mapping):
            names = [name for name, value in batch.items() if name != "labels" and _images(value)]
            if len(names) == 1 and isinstance(batch.get("labels"), Tensor):
                images, labels = self._mixed(batch[names[0]], batch["labels"])
                return {**batch, names[0]: images, "labels": labels}
        elif isinstance(batch, tuple | list) and len(batch) == 2:
            images, labels = batch
            if _images(images) and isinstance(labels, Tensor):
                return self._mixed(images, labels)
        raise ValueError(
            "mixup and cutmix mix batches of images and labels, (images, labels) or a dict of one "
            "tensor of floats [B, C, H, W] and 'labels'; this one is another"
        )

    def _mixed(self, images_BCHW: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        labels = labels if labels.is_floating_point() else labels.long()
        images_BCHW, labels = self._mix(images_BCHW, labels)
        return images_BCHW, labels


def _images(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()
