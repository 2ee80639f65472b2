"""Checks of labels."""

import torch
from torch import Tensor


def check_labels(labels: Tensor, num_classes: int, where: str = "labels") -> None:
    """Refuse labels that a network with `num_classes` outputs can't be trained on.

    On a GPU only their type is looked at, so that it is not waited for.

    Args:
        labels: [N], integers in 0..num_classes-1 or, of two classes, booleans; with
            `num_classes=1` (regression) finite floats.
        num_classes: how many classes there are, 1 for regression.
        where: what to call the data in the message, such as `"train"` or a file.

    Raises:
        ValueError: names the first bad value, its row, and what is allowed.
    """
    if labels.ndim != 1:
        raise ValueError(
            f"{where}: labels have shape {tuple(labels.shape)}; they must be one number a row, [N]"
        )
    floating = labels.is_floating_point()
    if labels.device.type == "cpu" and not labels.is_complex():
        values = labels if floating else labels.long()
        if num_classes == 1:
            good_N, allowed = values.isfinite(), "finite scores"
        else:
            good_N = (values >= 0) & (values < num_classes) & (values == values.floor())
            allowed = f"whole numbers from 0 to {num_classes - 1} ({num_classes} classes)"
        if not good_N.all():
            row = int((~good_N).nonzero()[0, 0])
            raise ValueError(
                f"{where}: label {labels[row].item()} in row {row} (counted from 0), and "
                f"{int((~good_N).sum())} bad labels in all; labels must be {allowed}"
            )
    unfit = labels.dtype == torch.bool and num_classes != 2
    if unfit or labels.is_complex() or floating != (num_classes == 1):
        expected = "float32 for regression" if num_classes == 1 else "int64 for classes"
        raise ValueError(f"{where}: labels are {labels.dtype}; they must be {expected}")
