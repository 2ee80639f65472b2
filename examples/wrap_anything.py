"""Exits on anything: what each kind of backbone looks like once it is wrapped.

    python examples/wrap_anything.py

All networks here have random weights, so nothing is downloaded.
"""

import argparse
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from transformers import AlbertConfig, AutoModel, BertConfig

import multiexit as mx


class Residual(nn.Module):
    """A network of one's own that no adapter knows."""

    def __init__(self, width: int = 32, depth: int = 4):
        super().__init__()
        self.embed = nn.Linear(10, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return x


class Added(nn.Module):
    """One residual block, as a stage."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x).relu()


@mx.wrap.register
def _(module: Residual) -> mx.Backbone:
    """From now on `mx.wrap` knows the class."""
    stages = [Added(block) for block in module.blocks]
    return mx.SequentialBackbone(module.embed, stages, example=torch.zeros(1, 10))


def backbones() -> dict[str, mx.Backbone]:
    """One of each kind, small."""
    small: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4}
    bert = AutoModel.from_config(BertConfig(intermediate_size=128, **small))
    albert = AutoModel.from_config(AlbertConfig(intermediate_size=128, embedding_size=32, **small))
    chain = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(4)))
    return {
        "BERT, transformers": mx.wrap(bert),
        "ALBERT, transformers": mx.wrap(albert),
        "ResNet-56 for CIFAR": mx.cifar_resnet(56),
        "ResNet-18, timm": mx.wrap(timm.create_model("resnet18")),
        "ViT-tiny, timm, by name": mx.wrap("timm:vit_tiny_patch16_224"),
        "ResNet-18, torchvision": mx.wrap(torchvision.models.resnet18()),
        "MobileNetV2, parts named": mx.wrap(
            torchvision.models.mobilenet_v2(),
            stem=["features.0"],
            stages=[f"features.{i}" for i in range(1, 19)],
            input_shape=(3, 224, 224),
        ),
        "nn.Sequential": mx.wrap(chain),
        "a class of your own": mx.wrap(Residual()),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.manual_seed(0)
    print(f"{'backbone':<26}{'stages':>7}{'exits':>7}{'all leave at exit 0':>21}")
    for name, backbone in backbones().items():
        model = mx.MultiExitModel(backbone, num_classes=3, exits=2).eval()
        cost = model.cost()
        inputs = backbone.example_inputs(2)
        logits_MBC = model(**inputs)
        prediction = model.predict(mx.FixedExit(0), **inputs)
        assert torch.allclose(prediction.logits_BC, logits_MBC[0], atol=1e-5)
        saved = f"{cost.full_macs / cost.macs_M[0]:.1f}× fewer MACs"
        print(f"{name:<26}{backbone.num_stages:>7}{model.num_exits:>7}{saved:>21}")


if __name__ == "__main__":
    main()
