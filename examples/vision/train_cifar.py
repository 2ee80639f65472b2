"""LeeBERT's recipe on CIFAR with a ResNet-56 and 27 exits, through the Python names.

    python examples/vision/train_cifar.py --data cifar10 --download

The paper's setting (appendix F): batch 128, SGD at 0.1, C = 4, Ω at 0.01.
"""

import argparse
from dataclasses import replace

import torch

import multiexit as mx
from multiexit import presets, report
from multiexit.data import cifar, digits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="cifar10", choices=["cifar10", "cifar100", "digits"])
    parser.add_argument("--data-dir")
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--recipe", default="leebert")
    parser.add_argument("--schedule", default="strong", choices=presets.CIFAR_SCHEDULES)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16", "fp16"])
    parser.add_argument("--output", help="folder for the model, its history and checkpoints")
    args = parser.parse_args()

    torch.manual_seed(0)
    if args.data == "digits":  # real images that come with scikit-learn
        data = digits.load()
    else:
        data = cifar.load(args.data, args.data_dir, download=args.download)
    channels, size, _ = data.train[0][0].shape

    # One exit after each residual block, the last being the network's own.
    backbone = mx.cifar_resnet(args.depth, in_channels=channels, size=size)
    model = mx.MultiExitModel(backbone, len(data.labels), labels=data.labels)
    print(f"{model.num_exits} exits, {model.cost().macs_M[-1] / 1e6:.1f} M MACs")

    config = replace(
        presets.cifar(args.schedule, args.epochs),
        max_steps=args.max_steps,
        mixed_precision=args.mixed_precision,
        output=args.output,
    )
    options = {"temperature": 4} if args.recipe.startswith(("leebert", "fastbert")) else {}
    mx.Trainer(model, mx.recipe(args.recipe, **options), config).fit(data.train)

    outputs = mx.collect(model, data.test)
    print(report.exit_table(outputs))
    rows = mx.sweep(outputs, [mx.Patience(p) for p in (2, 4, 6, 8)])
    print(report.policy_table([*rows, *mx.sweep(outputs, [mx.MaxProb(0.9)])]))


if __name__ == "__main__":
    main()
