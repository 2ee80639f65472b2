"""Data: GLUE, CIFAR and scikit-learn's digits as splits of one shape, and a user's own texts.

A split is a `torch.utils.data.Dataset` with `collate(items) -> batch` for the data loader,
`labels` (a tensor with one label a row), `lengths` (token counts, None for images) and
`subset(indices)`, which gives a split of the same type.
"""

from multiexit.data.own.loading import load as load
