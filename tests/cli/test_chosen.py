"""What a run begins with is said where nothing was typed."""

import pytest

from multiexit.cli.chosen import say_untrained


@pytest.mark.parametrize(
    ("backbone", "pretrained", "said"),
    [
        ("timm:resnet18", False, True),
        ("torchvision:resnet18", False, True),
        ("timm:resnet18", True, False),
        ("cifar-resnet-20", False, False),  # has no weights of its own
        (None, False, False),
    ],
)
def test_random_weights_are_said(backbone, pretrained, said, capsys):
    say_untrained(backbone, pretrained)
    err = capsys.readouterr().err
    assert err.startswith(f"multiexit: {backbone} starts from random weights: --pretrained") == said
    assert bool(err) == said
