"""A model in Lightning's loop."""

import pytest
import torch
from helpers import Table, chain, config, tensors
from torch.utils.data import DataLoader, TensorDataset
from transformers import BertConfig, BertModel

import multiexit as mx
from multiexit.training.optimizer import learning_rate

lightning = pytest.importorskip("lightning", reason="lightning is not installed")


def run(model, recipe, settings, epochs=2, rows=None, judged=None):
    from multiexit.integrations.lightning import MultiExitModule

    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = MultiExitModule(model, mx.recipe(recipe), config=settings)
    trainer.fit(module, rows or DataLoader(Table(), 8), judged or DataLoader(Table(20, seed=0), 8))
    return trainer


def test_it_takes_the_steps_of_a_plain_loop_and_scores_every_exit():
    settings = config(lr=0.1, schedule="linear", warmup=0.2)
    model, other = chain(), chain()
    told = run(model, "joint", settings).callback_metrics
    optimizer = torch.optim.SGD(other.parameters(), momentum=0.9, fused=True)
    factors_MM = mx.recipe("joint").phases[0].coefficients(mx.topology.none(4), 1.0, [1.0] * 4)
    table = Table()
    for step in range(10):
        x, labels = (each.split(8)[step % 5] for each in (table.x, table.labels))
        optimizer.param_groups[0]["lr"] = learning_rate(settings, step, 10)
        optimizer.zero_grad()
        (factors_MM * mx.loss_matrix(other(x), labels)).sum().backward()
        optimizer.step()
    for name, value in tensors(other).items():
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)
    rows = Table(20, seed=0)
    outputs = mx.collect(model, TensorDataset(rows.x, rows.labels))
    scores = [row["score"] for row in mx.exit_scores(outputs)]
    assert [float(told[f"val_exit_{m}_score"]) for m in range(4)] == pytest.approx(scores)
    assert float(told["val_mean"]) == pytest.approx(sum(scores) / 4)


def test_layer_decay_goes_with_it():
    plain, decayed = chain(), chain()
    before = tensors(plain)
    run(plain, "joint", config(lr=1e-3, momentum=0.0), epochs=1)
    run(decayed, "joint", config(lr=1e-3, momentum=0.0, layer_decay=0.5), epochs=1)
    name = "backbone.stages.0.0.weight"
    moved = [(m.state_dict()[name] - before[name]).norm() for m in (plain, decayed)]
    assert float(moved[1] / moved[0]) == pytest.approx(0.5**3, rel=0.05)


def test_what_one_loss_can_not_train_is_refused():
    with pytest.raises(ValueError, match="learns the loss weights Ω"):
        run(chain(), "leebert", config())


def test_tokens_of_batches_of_several_lengths_are_scored():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    bert = BertModel(BertConfig(num_hidden_layers=2, vocab_size=50, **sizes))
    model = mx.MultiExitModel(mx.wrap(bert), 3, problem="token-classification")

    def batch(tokens):
        ids_BT = torch.randint(1, 50, (4, tokens))
        return {
            "input_ids": ids_BT,
            "attention_mask": torch.ones_like(ids_BT),
            "labels": torch.where(ids_BT % 4 == 3, -100, ids_BT % 4),
        }

    batches = [batch(5), batch(7), batch(6)]
    loader = DataLoader(batches, batch_size=None)
    told = run(model, "joint", config(lr=0.01), 1, loader, loader).callback_metrics
    scores = [row["score"] for row in mx.exit_scores(mx.collect(model, batches))]
    assert [float(told[f"val_exit_{m}_score"]) for m in range(2)] == pytest.approx(scores)
