"""Scikit-learn's handwritten digits."""

import numpy as np
import torch

from multiexit.data.images import ImageDataset, Images
from multiexit.data.splits import holdout


def load() -> Images:
    """Scikit-learn's 1,797 images of digits, 8×8 and grey: real data that needs no download.

    A fifth of each class is the test set, always the same. There is no augmentation: a mirrored
    digit is another one.

    Returns:
        Training and test set of uint8 images [N, 1, 8, 8], the classes' names, the normalisation.

    Example:
        >>> from multiexit.data import digits
        >>> images = digits.load()
        >>> images.train.images.shape, len(images.test)
        (torch.Size([1438, 1, 8, 8]), 359)
    """
    from sklearn.datasets import load_digits

    pixels, target = map(np.asarray, load_digits(return_X_y=True))
    pixels = np.rint(pixels * (255 / 16)).astype(np.uint8)  # stored as 0..16
    images = torch.from_numpy(pixels).view(-1, 1, 8, 8)
    labels = torch.from_numpy(target).to(torch.int64)
    mean, std = (0.3060,), (0.3763,)
    train, test = holdout(ImageDataset(images, labels, mean, std), 0.2, seed=0)
    return Images(train, test, tuple(str(digit) for digit in range(10)), mean, std)
