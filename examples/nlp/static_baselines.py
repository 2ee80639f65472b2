"""A static baseline on a GLUE task: score, parameters, MACs and time against the full network.

    python examples/nlp/static_baselines.py --method pkd --layers 6 --backbone bert-base-uncased

Methods: `first` layers with one head; `layerdrop`, then every other layer; `headprune`, the least
important attention heads; `pkd` and `theseus`, short networks that learn from a fine-tuned one;
`distilbert`, or any other encoder as it is. `--data-dir` names a folder of GLUE's TSV files;
without it they come from the Hugging Face hub.
"""

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset
from transformers import AutoTokenizer

import multiexit as mx
from multiexit import presets, static
from multiexit.cli import reporting
from multiexit.data import tasks
from multiexit.data.batches import loader, move, unpack
from multiexit.data.splits import holdout
from multiexit.serving.timing import paired_times

METHODS = ("first", "layerdrop", "headprune", "pkd", "theseus", "distilbert")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=METHODS, default="first")
    parser.add_argument("--task", default="mrpc")
    parser.add_argument("--backbone", help="hub name or folder; BERT-base or DistilBERT")
    parser.add_argument("--data-dir")
    parser.add_argument("--layers", type=int, default=6, help="that are left")
    parser.add_argument("--share", type=float, default=0.5, help="of the heads that go")
    parser.add_argument("--rate", type=float, default=0.2, help="LayerDrop's")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--max-steps", type=int, help="of each phase of training")
    parser.add_argument("--lr", type=float, help="small encoders want 5e-5 … 2e-4")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--pool", choices=("first", "mean"), help="of the head")
    parser.add_argument("--output", type=Path, default=Path("runs/static"))
    args = parser.parse_args()
    command = shlex.join(["python", "examples/nlp/static_baselines.py", *sys.argv[1:]])

    as_it_is = args.method == "distilbert"
    name = args.backbone or ("distilbert-base-uncased" if as_it_is else "bert-base-uncased")
    torch.manual_seed(0)
    task = tasks.load(args.task, args.data_dir, AutoTokenizer.from_pretrained(name))
    train, validation = holdout(task.train, 0.1)
    config = replace(
        presets.glue(task.name), epochs=args.epochs, max_steps=args.max_steps, metric=task.metric
    )
    if args.lr:
        config = replace(config, lr=args.lr, omega_lr=10 * args.lr)

    if args.batch_size:
        config = replace(config, batch_size=args.batch_size)

    def on(backbone: mx.Backbone, exits: Any = None) -> mx.MultiExitModel:
        exits = exits or [backbone.num_stages - 1]
        classes = task.num_classes
        return mx.MultiExitModel(backbone, classes, exits, pool=args.pool, labels=task.labels)

    def fit(model: mx.MultiExitModel, recipe: mx.Recipe | None = None) -> mx.History:
        return mx.Trainer(model, recipe or static.fine_tune(), config).fit(train, validation)

    def encoder() -> Any:
        return mx.wrap(name)

    full = on(encoder())  # what speed-ups are against
    match args.method:
        case "first":
            model = on(static.first_layers(encoder(), args.layers))
            history = fit(model)
        case "layerdrop":
            dropping = static.LayerDrop(encoder(), args.rate)
            whole = on(dropping)
            history = fit(whole)
            left = static.spread_layers(dropping.num_stages, args.layers)
            model = static.single_exit(whole, static.keep_layers(dropping.inner, left))
        case "headprune":
            fit(full)
            importance = static.head_importance(full, train)
            kept = static.heads_to_keep(importance, args.share)
            trunk: Any = full.backbone
            model = static.single_exit(full, static.keep_heads(trunk, kept))
            history = fit(model)  # again, with the heads that are left
        case "pkd":
            fit(full)
            student = on(static.first_layers(encoder(), args.layers), "all")
            history = fit(student, static.pkd(full, args.layers))
            model = static.single_exit(student)
        case "theseus":
            fit(full)
            trunk = full.backbone
            ship = static.single_exit(full, static.Theseus(trunk, args.layers))
            history = fit(ship, static.theseus())
            model = static.successor(ship)
        case _:
            model = full
            history = fit(model)

    model.preprocessing = task.preprocessing
    model.policy = mx.FixedExit(0)
    model.save_pretrained(args.output / "model", AutoTokenizer.from_pretrained(name))
    for label, rows in task.sets.items():
        outputs = mx.collect(model, rows, task.metric)
        faster = speedup(full, model, rows)
        judged = [
            static.relative_to(row, outputs.cost, full.cost(), faster)
            for row in mx.sweep(outputs, [mx.FixedExit(0)])
        ]
        folder = args.output if len(task.sets) == 1 else args.output / label
        title = f"{args.method}, {model.exits[0] + 1} layers of {name} on {task.name} ({label})"
        note = "A static network; its speed-ups are against the full one with one head."
        about = {"recipe": args.method, "note": note, "command": command}
        reporting.write_results(folder, outputs, judged, history, title=title, **about)


def speedup(full: mx.MultiExitModel, short: mx.MultiExitModel, rows: Any) -> float:
    """Seconds of the full network ÷ seconds of the short one, on 4 batches of 8 rows."""
    made, _ = loader(Subset(rows, range(min(32, len(rows)))), batch_size=8)
    device = next(short.parameters()).device
    inputs = [move(unpack(batch)[1], device) for batch in made]
    theirs, ours = (model.to(device).eval() for model in (full, short))
    slow, fast = paired_times(
        lambda: [theirs.full(**each) for each in inputs],
        lambda: [ours.full(**each) for each in inputs],
    )
    return slow / fast


if __name__ == "__main__":
    main()
