"""LeeBERT on a GLUE task, through the Python names.

    python examples/nlp/train_glue.py --task mrpc --backbone albert-base-v2

`--data-dir` names a folder of GLUE's TSV files; without it they come from the Hugging Face hub.
"""

import argparse
from dataclasses import replace

import torch
from transformers import AutoTokenizer

import multiexit as mx
from multiexit import presets, report
from multiexit.data import glue
from multiexit.data.splits import holdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--backbone", default="albert-base-v2", help="hub name or folder")
    parser.add_argument("--data-dir")
    parser.add_argument("--recipe", default="leebert")
    parser.add_argument("--pool", help="first or mean; mean suits sentence encoders")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--lr", type=float, help="small encoders want 5e-5 … 2e-4")
    parser.add_argument("--output", help="folder for the model, its history and checkpoints")
    args = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.backbone)
    data = glue.load(args.task, tokenizer, args.data_dir)
    task = data.task

    # Any encoder, an exit after each layer.
    model = mx.MultiExitModel(
        mx.wrap(args.backbone), task.num_classes, pool=args.pool, labels=task.labels
    )

    # GLUE's dev set is for reporting; a tenth of the training set selects the epoch.
    train, validation = holdout(data.train, 0.1)
    config = replace(
        presets.glue(task.name),
        epochs=args.epochs,
        max_steps=args.max_steps,
        metric=task.metric,
        output=args.output,
    )
    if args.lr:
        config = replace(config, lr=args.lr, omega_lr=10 * args.lr)
    history = mx.Trainer(model, mx.recipe(args.recipe), config).fit(train, validation)
    print("mean over exits, by epoch:", [round(row["mean"], 4) for row in history.epochs])

    # One pass over the dev set serves every question.
    outputs = mx.collect(model, data.dev, task.metric)
    print(report.exit_table(outputs))
    if task.num_classes > 1:
        print(report.policy_table(mx.sweep(outputs, [mx.Patience(p) for p in range(1, 7)])))


if __name__ == "__main__":
    main()
