"""A network's own classes in the order that a task has them in."""

import warnings
from collections.abc import Sequence

from multiexit.arguments import first_of
from multiexit.backbones.base import Backbone
from multiexit_runner.user_line import user_level


def order_classes(backbone: Backbone, labels: Sequence[str]) -> None:
    """Put a network's own classes in a task's order, where both have the same names for them."""
    head = backbone.classifier
    if head is None or head.labels is None or head.num_classes != len(labels):
        return
    ordered = head.ordered(labels)
    if ordered is None:
        warnings.warn(
            f"the network calls its classes {first_of(head.labels)} and the task calls them "
            f"{first_of(labels)}: they are taken to be the same, in this order",
            stacklevel=user_level(),
        )
        return
    backbone.set_classifier(ordered)
    if backbone.spec is not None and "config" in backbone.spec:
        id2label = {str(index): label for index, label in enumerate(labels)}
        config = {**backbone.spec["config"], "id2label": id2label}
        config["label2id"] = {label: index for index, label in enumerate(labels)}
        backbone.spec["config"] = config
