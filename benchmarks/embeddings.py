"""A sentence encoder with exits, on STS-B: Spearman's correlation and cosines against speed-up.

    python benchmarks/embeddings.py MiniLM-L6 --data-dir data --output docs/results/embeddings

Early exits learn the encoder's own vectors of STS-B's training sentences, without labels. The trunk
stays as it is, so its pooled features are computed once, and heads are trained on these. Beside
them stands the encoder cut behind each layer, untrained. Sentences of the development set aren't
trained on; each counts once, but for pairs. Thresholds are calibrated on half of them, drawn at
random, and judged on the other half, many times.
"""

import argparse
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import report
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import AutoModel, AutoTokenizer

import multiexit as mx
from multiexit.backbones import Carry
from multiexit.data.glue_files import GlueRows, read_tsv
from multiexit.data.glue_tasks import find_task
from multiexit.data.text import TextDataset
from multiexit.evaluation import exit_losses
from multiexit.policies.registry import policy_name

WAYS: dict[str, tuple[dict[str, Any], int]] = {
    "cosines, 3 epochs": ({}, 3),
    "similarity, 3 epochs": ({"similarity": True}, 3),
    "cosines, 10 epochs": ({}, 10),
    "similarity, 10 epochs": ({"similarity": True}, 10),
}
"""Ways to train: the recipe's options, and epochs."""

BEST = "similarity, 10 epochs"
SPEEDUP = 1.5
SETTLED = (0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15)
BOUNDS = (("cosine", 0.02), ("cosine", 0.05), ("cosine", 0.1), ("rank@10", 0.1), ("rank@10", 0.2))

Row = dict[str, Any]


class Pooled(mx.Backbone):
    """An encoder's pooled features [B, M, H] as a backbone: stage m reads the m-th."""

    def __init__(self, M: int, H: int):
        super().__init__([(H,)] * M)
        self.width = H
        self.nothing = nn.Identity()

    def start(self, x_BMH: Tensor) -> Carry:
        return {"x_BMH": x_BMH}

    def stage(self, carry: Carry, index: int) -> tuple[Carry, Tensor]:
        return carry, carry["x_BMH"][:, index]

    def stage_module(self, index: int) -> nn.Module:
        return self.nothing

    def example_inputs(self, batch: int = 1) -> dict[str, Tensor]:
        return {"x_BMH": torch.zeros(batch, self.num_stages, self.width)}


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

    def spearman(self, first_PD: Tensor, second_PD: Tensor) -> float:
        """Of the pairs' cosines with their scores, × 100."""
        return 100 * float(spearmanr((first_PD * second_PD).sum(-1), self.scores)[0])  # type: ignore[arg-type]


@torch.inference_mode()
def pooled(backbone: mx.Backbone, rows: TextDataset, pool: str) -> Tensor:
    """Every stage's pooled feature of every row, [N, M, H]."""
    H = backbone.feature_shapes[0][-1]
    x_NMH = torch.empty(len(rows), backbone.num_stages, H)  # type: ignore[arg-type]
    for places in torch.tensor(rows.lengths).argsort().split(64):  # rows of one length together
        inputs = rows.collate([rows[place] for place in places.tolist()])
        del inputs["labels"]
        valid_BT = inputs["attention_mask"].bool()
        features = backbone.features(**inputs)
        x_NMH[places] = torch.stack([mx.heads.pool_feature(f, pool, valid_BT) for f in features], 1)
    return x_NMH


def trained(
    heads: mx.MultiExitModel, x_NMH: Tensor, recipe: mx.Recipe, epochs: int, seed: int
) -> mx.MultiExitModel:
    """Heads on pooled features, as a recipe trains them."""
    heads = deepcopy(heads)
    config = mx.TrainConfig(epochs=epochs, batch_size=64, lr=1e-3, seed=seed, progress=False)
    mx.Trainer(heads, recipe, config).fit(TensorDataset(x_NMH))
    return heads


def said(
    heads: mx.MultiExitModel, x_NMH: Tensor, network: mx.MultiExitModel, rows: TextDataset
) -> mx.Outputs:
    """What the network says with these heads; some rows are run through it, to see that."""
    outputs = mx.collect(heads, TensorDataset(x_NMH))
    network.heads.load_state_dict(heads.heads.state_dict())
    some = mx.collect(network, rows.subset(range(32)))
    torch.testing.assert_close(some.logits_MBC, outputs.logits_MBC[:, :32], atol=1e-4, rtol=0)
    return replace(outputs, cost=some.cost)


def judged(outputs: mx.Outputs, dev: Pairs, policy: mx.ExitPolicy) -> Row:
    """One policy on all of the development set."""
    row = mx.judge(outputs, policy)
    exit_N, v_ND = outputs.answers(policy)
    earlier_P = torch.minimum(exit_N[dev.first], exit_N[dev.second])
    v_MND = outputs.logits_MBC
    return {
        "policy": policy_name(policy),
        "speed-up": row.speedup_layers,
        "Spearman": dev.spearman(v_ND[dev.first], v_ND[dev.second]),
        "at the earlier exit": dev.spearman(
            v_MND[earlier_P, dev.first], v_MND[earlier_P, dev.second]
        ),
        "cosine": row.score,
    }


def compared(outputs: mx.Outputs, dev: Pairs) -> Row:
    """What tells ways to train apart: a fixed exit early and late, and rows at one speed."""
    found = [judged(outputs, dev, mx.FixedExit(exit)) for exit in (0, outputs.num_exits - 2)]
    row = {f"Spearman, {part['policy']}": part["Spearman"] for part in found}
    at_speed = judged(outputs, dev, mx.calibrate(outputs, mx.Settled, speedup=SPEEDUP))
    del at_speed["policy"]
    return row | {f"{name}, by row": value for name, value in at_speed.items()}


def bounded(outputs: mx.Outputs, corpus_ND: Tensor, splits: int) -> list[Row]:
    """Bounds at 90 % confidence: the loss on the half that a threshold was not calibrated on."""
    rows = []
    for loss, risk in BOUNDS:
        corpus = corpus_ND if loss.startswith("rank") else None
        for split in range(splits):
            known, rest = outputs.split(0.5, split)
            policy = mx.calibrate(known, mx.Settled, risk=risk, loss=loss, corpus=corpus)
            mean = exit_losses.realised(rest, policy, loss, corpus)
            rows.append(
                {
                    "bound": f"{loss} ≤ {risk}",
                    "mean on new rows": mean,
                    "share of splits above": float(mean > risk),
                    "speed-up": mx.judge(rest, policy).speedup_layers,
                }
            )
    return rows


def means(rows: list[Row]) -> list[Row]:
    """Rows whose words agree become one, with the means of their numbers, and how many they are."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        words = tuple(value for value in row.values() if isinstance(value, str))
        groups.setdefault(words, []).append(row)
    return [
        {
            name: value if isinstance(value, str) else sum(row[name] for row in same) / len(same)
            for name, value in same[0].items()
        }
        | {"runs": len(same)}
        for same in groups.values()
    ]


def main(args: Any) -> None:
    task = find_task("stsb")
    tokenizer = AutoTokenizer.from_pretrained(args.encoder)
    backbone = mx.wrap(AutoModel.from_pretrained(args.encoder)).eval()
    network = mx.MultiExitModel(backbone, problem="embedding", pool=args.pool).eval()
    train = read_tsv(task, args.data_dir / task.folder / "train.tsv")
    dev = Pairs(read_tsv(task, args.data_dir / task.folder / "dev.tsv"))
    sentences = sorted({*train.texts, *(train.pairs or [])} - {*dev.sentences})
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(0)).tolist()
    sentences = [sentences[row] for row in order[: args.sentences]]
    x_NMH = pooled(backbone, TextDataset.from_texts(tokenizer, sentences), args.pool)
    corpus_ND = x_NMH[: args.corpus, -1]
    dev_rows = TextDataset.from_texts(tokenizer, dev.sentences)
    dev_NMH = pooled(backbone, dev_rows, args.pool)
    heads = mx.MultiExitModel(Pooled(*dev_NMH.shape[1:]), problem="embedding")
    fixed = [mx.FixedExit(exit) for exit in range(heads.num_exits)]
    policies = [*fixed, *map(mx.Settled, SETTLED)]

    outputs = said(heads, dev_NMH, network, dev_rows)
    exits = [{"heads": "untrained"} | judged(outputs, dev, policy) for policy in fixed]
    ways = [{"heads": "untrained"} | compared(outputs, dev)]
    bounds: list[Row] = []
    for seed in range(args.seeds):
        for name, (options, epochs) in WAYS.items():
            recipe = mx.recipe("embedding", **options)
            outputs = said(trained(heads, x_NMH, recipe, epochs, seed), dev_NMH, network, dev_rows)
            ways.append({"heads": name} | compared(outputs, dev))
            if name == BEST:
                exits += [{"heads": name} | judged(outputs, dev, policy) for policy in policies]
                bounds += bounded(outputs, corpus_ND, args.splits)
            for rows, file in ((exits, "exits.json"), (ways, "ways.json"), (bounds, "bounds.json")):
                output = None if args.output is None else str(args.output / file)
                if rows:
                    report(means(rows), output, " ".join(sys.argv))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("encoder", help="a folder, or a name of the hub")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="with STS-B's TSVs")
    parser.add_argument("--pool", default="mean", choices=["mean", "first", "last"])
    parser.add_argument("--sentences", type=int, help="to train on, at most")
    parser.add_argument("--corpus", type=int, default=2000, help="training sentences to search in")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--splits", type=int, default=20, help="of the development set, a seed")
    parser.add_argument("--output", type=Path, help="a folder for the JSON files")
    main(parser.parse_args())
