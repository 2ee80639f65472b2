"""Tag words, and leave early with a sentence whose words are all sure.

    python examples/nlp/tag_words.py --data glue/MRPC --tokenizer bert-base-uncased

Nobody has tagged these sentences: the tags are made from how a word is written. Behind the first
word of a sentence a run of capitalised words is a NAME, and a number is a NUM. The tokenizer must
forget capitals, so that the network has to find names by the words themselves and those around
them. The network is small and starts from random weights; `--backbone` names a pretrained one.
"""

import argparse
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers

import multiexit as mx
from multiexit.data.words import tokenise_words
from multiexit.files.json_files import write_json
from multiexit.policies.registry import policy_name
from multiexit.runtime import versions

NAMES = ["O", "B-NAME", "I-NAME", "B-NUM"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="a folder with MRPC's TSV files")
    parser.add_argument("--tokenizer", required=True, help="an uncased one, a name or a folder")
    parser.add_argument("--backbone", help="a pretrained encoder; else a small one, from scratch")
    parser.add_argument("--recipe", default="leebert")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--layers", type=int, default=6, help="of the small network")
    parser.add_argument("--width", type=int, default=128, help="of the small network")
    parser.add_argument("--rows", type=int, help="read so many lines alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", help="a JSON file for the exits' and policies' figures")
    args = parser.parse_args()

    tokenizer = transformers.AutoTokenizer.from_pretrained(args.tokenizer)
    train, dev, test = (
        tagged(tokenizer, args.data / name, args.rows)
        for name in ("train.tsv", "dev.tsv", "test.tsv")
    )
    transformers.set_seed(args.seed)
    backbone = mx.wrap(args.backbone or small_bert(len(tokenizer), args.layers, args.width))
    model = mx.MultiExitModel(backbone, len(NAMES), labels=NAMES, problem="token-classification")
    config = mx.TrainConfig(
        epochs=args.epochs,
        lr=2e-5 if args.backbone else 5e-4,
        metric="entity_f1",
        seed=args.seed,
    )
    mx.Trainer(model, mx.recipe(args.recipe), config).fit(train, dev)

    seen = mx.collect(model, dev, metric="entity_f1")
    outputs = mx.collect(model, test, metric="entity_f1")
    print(f"{len(train)}, {len(dev)} and {len(test)} sentences; entities on the test sentences:")
    print(mx.report.exit_table(outputs))
    policies: list[mx.ExitPolicy] = [mx.MaxProb(threshold) for threshold in (0.7, 0.8, 0.9, 0.95)]
    policies += [mx.Patience(1), mx.Patience(2)]
    try:
        policies.append(mx.calibrate(seen, mx.MaxProb, risk=0.1))
    except ValueError as error:
        print(error)
    print(mx.report.policy_table(mx.sweep(outputs, policies)))
    if args.output:
        fixed = [mx.FixedExit(exit) for exit in (model.num_exits - 1, 0)]
        write_figures(Path(args.output), mx.sweep(outputs, [*fixed, *policies]))


def write_figures(path: Path, rows: list[Any]) -> None:
    """What exits and policies give, with the command, as JSON."""
    about = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": versions(),
        "note": "One run, from one seed.",
    }
    figures = [
        {
            "policy": policy_name(row.policy),
            "F1 of entities (%)": f"{100 * row.score:.2f}",
            "mean layers": f"{row.mean_layers:.2f}",
            "fewer MACs": f"{row.speedup_macs:.2f}×",
        }
        for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"about": about, "rows": figures})


def tagged(tokenizer: Any, path: Path, rows: int | None) -> Any:
    """A set of tokenised sentences with tags."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()[1:][:rows]
    sentences = dict.fromkeys(sentence for line in lines for sentence in line.split("\t")[3:5])
    words = [sentence.split() for sentence in sentences if sentence.split()]
    return datasets.Dataset.from_dict(
        tokenise_words(tokenizer, words, [tags_of(row) for row in words], NAMES)
    )


def tags_of(words: list[str]) -> list[str]:
    """The tags of a sentence's words, by how they are written."""
    tags = []
    for place, word in enumerate(words):
        if re.fullmatch(r"[\d.,]*\d[\d.,]*", word):
            tags.append("B-NUM")
        elif place and word[0].isupper():
            tags.append("I-NAME" if tags[-1].endswith("NAME") else "B-NAME")
        else:
            tags.append("O")
    return tags


def small_bert(words: int, layers: int, width: int) -> transformers.BertModel:
    """An untrained encoder."""
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=words,
            num_hidden_layers=layers,
            hidden_size=width,
            num_attention_heads=4,
            intermediate_size=4 * width,
        ),
        add_pooling_layer=False,
    )


if __name__ == "__main__":
    main()
