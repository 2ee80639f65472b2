"""A sentence encoder with exits, on STS-B: Spearman's correlation against speed-up.

    python benchmarks/embeddings.py MiniLM-L6 --data-dir data --output docs/results/embeddings

Early exits learn the encoder's own vectors of STS-B's training sentences, without labels, in two
ways: heads alone on the network as it is, and the trunk too. Beside them stands the untrained
network cut behind each layer. Thresholds of `Settled` are swept, and calibrated on half of the
development set's pairs, drawn at random, and judged on the other half, many times. What is counted:
Spearman's correlation of cosines with the scores of the pairs, and the mean cosine of sentences to
the untouched network's vectors.
"""

import argparse
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from common import report
from scipy.stats import spearmanr
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

import multiexit as mx
from multiexit.data.glue_files import GlueRows, read_tsv
from multiexit.data.glue_tasks import find_task
from multiexit.data.text import TextDataset
from multiexit.evaluation import guarantee
from multiexit.policies.registry import policy_name
from multiexit.serving import measured_speedup

SETTLED = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3)
BOUNDS = (("cosine", 0.05), ("cosine", 0.1), ("rank@10", 0.1), ("rank@10", 0.2))


class Pairs:
    """The development set: its sentences once each, and the pairs' places among them."""

    def __init__(self, rows: GlueRows):
        assert rows.pairs is not None
        self.sentences = list(dict.fromkeys([*rows.texts, *rows.pairs]))
        place = {sentence: index for index, sentence in enumerate(self.sentences)}
        self.first, self.second = (
            torch.tensor([place[s] for s in side]) for side in (rows.texts, rows.pairs)
        )
        self.scores = torch.tensor(rows.labels)

    def spearman(self, vectors_BD: Tensor, pairs: Tensor | None = None) -> float:
        """Of the pairs' cosines with their scores, × 100."""
        some = slice(None) if pairs is None else pairs
        first, second = vectors_BD[self.first[some]], vectors_BD[self.second[some]]
        return 100 * float(spearmanr((first * second).sum(-1), self.scores[some])[0])  # type: ignore[arg-type]

    def split(self, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows to calibrate on, rows to judge on, none in both, and the judged pairs."""
        order = torch.randperm(len(self.scores), generator=torch.Generator().manual_seed(seed))
        half = len(order) // 2
        known, judged = (
            torch.cat([self.first[pairs], self.second[pairs]]).unique()
            for pairs in (order[:half], order[half:])
        )
        return known, judged[~torch.isin(judged, known)], order[half:]


def trained(
    network: mx.MultiExitModel, rows: TextDataset, trunk: bool, seed: int, args: Any
) -> mx.MultiExitModel:
    """The network with trained exits."""
    model = deepcopy(network)
    rows = rows.subset(range(len(rows)))
    if trunk:
        rows.labels = mx.collect(model, rows).labels_B
    config = mx.TrainConfig(
        epochs=args.epochs,
        max_steps=args.max_steps,
        batch_size=32,
        lr=1e-4 if trunk else 1e-3,
        seed=seed,
        progress=False,
    )
    mx.Trainer(model, mx.recipe("embedding", trunk=trunk), config).fit(rows)
    return model.eval()


def judged(
    name: str,
    model: mx.MultiExitModel,
    outputs: mx.Outputs,
    dev: Pairs,
    policy: mx.ExitPolicy,
    clock: Callable[[mx.MultiExitModel, mx.ExitPolicy], float] | None,
) -> dict[str, Any]:
    """One policy on all of the development set."""
    row = mx.judge(outputs, policy)
    _, vectors_BD = outputs.answers(policy)
    return {
        "exits": name,
        "policy": policy_name(policy),
        "spearman": dev.spearman(vectors_BD),
        "cosine": row.score,
        "speed-up, layers": row.speedup_layers,
        "speed-up, time": None if clock is None else clock(model, policy),
    }


def calibrated(
    name: str, outputs: mx.Outputs, dev: Pairs, corpus_ND: Tensor, splits: int
) -> list[dict[str, Any]]:
    """Bounds at 90 % confidence: how they were kept, over random halves."""
    rows = []
    for loss, risk in BOUNDS:
        corpus = corpus_ND if loss.startswith("rank") else None
        found = []
        for seed in range(splits):
            known, rest, pairs = dev.split(seed)
            try:
                policy = mx.calibrate(
                    outputs.take(known), mx.Settled, risk=risk, loss=loss, corpus=corpus
                )
            except ValueError:  # no threshold is certified: nobody leaves early
                policy = mx.FixedExit(outputs.num_exits - 1)
            unseen = outputs.take(rest)
            mean = guarantee.realised(unseen, policy, loss, corpus)
            _, vectors_BD = outputs.answers(policy)
            speedup = mx.judge(unseen, policy).speedup_layers
            found.append((mean, dev.spearman(vectors_BD, pairs), speedup))
        loss_S, spearman_S, speedup_S = torch.tensor(found, dtype=torch.float64).T
        rows.append(
            {
                "exits": name,
                "bound": f"{loss} <= {risk}",
                "mean loss": float(loss_S.mean()),
                "above the bound": float((loss_S > risk).double().mean()),
                "spearman": float(spearman_S.mean()),
                "speed-up, layers": float(speedup_S.mean()),
            }
        )
    return rows


def main(args: Any) -> None:
    task = find_task("stsb")
    tokenizer = AutoTokenizer.from_pretrained(args.encoder)
    backbone = mx.wrap(AutoModel.from_pretrained(args.encoder))
    network = mx.MultiExitModel(backbone, problem="embedding", pool=args.pool).eval()
    train = read_tsv(task, args.data_dir / task.folder / "train.tsv")
    dev = Pairs(read_tsv(task, args.data_dir / task.folder / "dev.tsv"))
    sentences = sorted({*train.texts, *(train.pairs or [])} - {*dev.sentences})
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(0)).tolist()
    sentences = [sentences[row] for row in order[: args.sentences]]
    rows = TextDataset.from_texts(tokenizer, sentences)
    dev_rows = TextDataset.from_texts(tokenizer, dev.sentences)
    untouched = mx.collect(network, dev_rows)
    corpus_ND = mx.collect(network, rows).labels_B

    def clock(model: mx.MultiExitModel, policy: mx.ExitPolicy) -> float:
        return measured_speedup(model, policy, dev_rows, args.batch_size, args.timed, repeats=3)

    table: list[dict[str, Any]] = []
    bounds: list[dict[str, Any]] = []

    def add(name: str, model: mx.MultiExitModel, seed: int = 0) -> mx.Outputs:
        # Against the untouched network, whose vectors are the labels.
        outputs = mx.collect(model, _labelled(dev_rows, untouched.labels_B))
        timed = clock if seed == 0 else None
        table.extend(judged(name, model, outputs, dev, policy, timed) for policy in policies)
        return outputs

    policies: list[mx.ExitPolicy] = [mx.FixedExit(exit) for exit in range(network.num_exits)]
    policies += [mx.Settled(threshold) for threshold in SETTLED]
    add("untrained", network)
    for seed in range(args.seeds):
        for trunk in (False, True):
            name = f"{'trunk and heads' if trunk else 'heads'}, seed {seed}"
            model = trained(network, rows, trunk, seed, args)
            outputs = add(name, model, seed)
            corpus = mx.collect(model, rows).logits_MBC[-1] if trunk else corpus_ND
            bounds += calibrated(name, outputs, dev, corpus, args.splits)
            for found, file in ((table, "stsb.json"), (bounds, "stsb-bounds.json")):
                output = None if args.output is None else str(args.output / file)
                report(found, output, " ".join(sys.argv))


def _labelled(rows: TextDataset, vectors_BD: Tensor) -> TextDataset:
    labelled = rows.subset(range(len(rows)))
    labelled.labels = vectors_BD
    return labelled


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("encoder", help="a folder, or a name of the hub")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="with STS-B's TSVs")
    parser.add_argument("--pool", default="mean", choices=["mean", "first", "last"])
    parser.add_argument("--sentences", type=int, default=4000, help="to train on, at most")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--seeds", type=int, default=3, help="the first is timed")
    parser.add_argument("--splits", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=1, help="of what is timed")
    parser.add_argument("--timed", type=int, default=16, help="sentences to time")
    parser.add_argument("--output", type=Path, help="a folder for the JSON files")
    main(parser.parse_args())
