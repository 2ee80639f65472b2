"""A recipe's loss in other loops: by itself, and in the `Trainer` of transformers."""

import re

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import (
    CLASSES,
    ROOT,
    Table,
    Text,
    assert_same,
    chain,
    config,
    convnet,
    fit,
    phased,
    tensors,
)
from torch import nn
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

import multiexit as mx
from multiexit.integrations import PhaseLoss, exit_figures
from multiexit.integrations.transformers import ForTrainer, compute_metrics
from multiexit.recipes import RECIPES

ROWS = Table(24)
WHOLE = (ROWS.x, ROWS.labels)


def made_for(recipe):
    """A chain with heads of the recipe's kind that read vectors."""
    return chain(head=None if recipe.head == "attention" else recipe.head)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_loss_of_our_own_trainer_or_is_refused(name):
    """The oracle is the loss that `multiexit.Trainer` logs for one step on all rows."""
    recipe = mx.recipe(name)
    model, other = (made_for(recipe) for _ in range(2))
    for part in (*model.modules(), *other.modules()):
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    refused = ""
    try:
        loss = PhaseLoss(model, recipe)
    except ValueError as error:
        refused = str(error)
    if refused:
        assert "multiexit.Trainer" in refused or name == "embedding"  # of vectors
        return
    got, logits_MBC = loss.train()(WHOLE)
    wanted = fit(other, recipe, config(batch_size=24, max_steps=1), ROWS, ROWS).steps[0]["loss"]
    assert float(got.detach()) == pytest.approx(wanted, abs=1e-5)
    assert logits_MBC.shape == (4, 24, CLASSES)


def test_the_page_names_the_recipes_that_are_taken():
    taken = set()
    for name in RECIPES:
        try:
            PhaseLoss(made_for(mx.recipe(name)), mx.recipe(name))
        except ValueError:
            continue
        taken.add(name)
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    named = text.partition("## Inside another loop")[2].partition("Learned Ω")[0]
    assert set(re.findall(r"`([\w-]+)`", named)) == taken


def test_what_a_phase_does_not_train_stays():
    recipe = mx.recipe("deebert")
    model = convnet()
    loss = PhaseLoss(model, recipe, phase=1)
    before = tensors(model)
    trained = [p for p in loss.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.1)
    loss.train()
    value, _ = loss((torch.randn(6, 1, 8, 8), torch.arange(6) % CLASSES))
    value.backward()
    optimizer.step()
    moved = {name for name, now in model.state_dict().items() if not torch.equal(now, before[name])}
    assert moved
    assert all(name.startswith("heads.") for name in moved)


def rows(count, seed=0):
    table = Table(count, seed)
    return Dataset.from_dict(
        {"x": table.x.tolist(), "labels": table.labels.tolist(), "idx": list(range(count))}
    ).with_format("torch")


def arguments(folder, **changes):
    return TrainingArguments(
        str(folder), per_device_train_batch_size=8, num_train_epochs=4, learning_rate=0.05,
        eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, report_to=[],
        metric_for_best_model="mean", remove_unused_columns=False, use_cpu=True, disable_tqdm=True,
        **changes,
    )  # fmt: skip


def test_trainer_trains_it_scores_every_exit_and_keeps_the_best(tmp_path):
    model = chain()
    trained = ForTrainer(model, mx.recipe("joint"))
    dev = rows(40, seed=0)
    trainer = Trainer(
        trained, arguments(tmp_path), train_dataset=rows(120), eval_dataset=dev,
        compute_metrics=compute_metrics(model),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="left out: idx"):
        trainer.train()
    table = Table(40, 0)
    ours = mx.collect(model, torch.utils.data.TensorDataset(table.x, table.labels))
    scores = [row["score"] for row in mx.exit_scores(ours)]
    told = trainer.evaluate()
    assert [told[f"eval_exit_{m}_score"] for m in range(4)] == pytest.approx(scores)
    means = [row["eval_mean"] for row in trainer.state.log_history if "eval_mean" in row]
    assert told["eval_mean"] == pytest.approx(max(means))
    assert told["eval_mean"] > 0.8
    unlabelled = dev.remove_columns("labels")
    assert trainer.predict(unlabelled).predictions.shape == (40, 4, CLASSES)
    model.save_pretrained(tmp_path / "model")
    loaded = mx.MultiExitModel.from_pretrained(tmp_path / "model", model.backbone)
    assert_same(tensors(model), tensors(loaded))


def test_checkpoints_of_heads_that_share_a_pooler_are_gone_on_from(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    network = BertConfig(vocab_size=60, intermediate_size=32, **sizes)
    text, runs = Text(16), []
    for start in (None, str(tmp_path / "checkpoint-2")):
        torch.manual_seed(len(runs))
        model = mx.MultiExitModel(mx.wrap(BertModel(network)), CLASSES)
        assert model.heads[0].pooler is model.heads[1].pooler
        settings = TrainingArguments(
            *(str(tmp_path),),
            **{"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4, "report_to": []},
            **{"remove_unused_columns": False, "disable_tqdm": True},
        )
        trained = ForTrainer(model.eval(), mx.recipe("joint"))
        trainer = Trainer(trained, settings, train_dataset=text, data_collator=text.collate)
        trainer.train(resume_from_checkpoint=start)
        runs.append(tensors(model))
    assert_same(*runs)


def test_accumulated_batches_count_once(tmp_path):
    """Two batches of 4 that are accumulated make the step of one batch of 8."""

    def run(**changes):
        model = chain()
        settings = {"max_steps": 2, "optim": "sgd", "max_grad_norm": 0.0, **changes}
        args = TrainingArguments(
            str(tmp_path), learning_rate=0.1, report_to=[], use_cpu=True, disable_tqdm=True,
            remove_unused_columns=False, save_strategy="no", **settings,
        )  # fmt: skip
        trained = ForTrainer(model, mx.recipe("joint"))
        Trainer(trained, args, train_dataset=rows(16).remove_columns("idx")).train()
        return tensors(model)

    whole = run(per_device_train_batch_size=8)
    halves = run(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    for name, value in whole.items():
        torch.testing.assert_close(value, halves[name])


def test_inputs_that_trainer_left_out_are_named(tmp_path):
    args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(ForTrainer(chain(), mx.recipe("joint")), args, train_dataset=rows(16))
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        trainer.train()


def test_what_one_loss_can_not_train_is_refused():
    for recipe, phase, said in (
        ("leebert", 0, "learns the loss weights Ω"),
        ("cosee", 0, "weighs rows by how far training is"),
        ("romebert", 0, "changes gradients before"),
        ("joint", 1, r"phases 0\.\.0, got 1"),
    ):
        made = mx.recipe(recipe)
        with pytest.raises(ValueError, match=said):
            PhaseLoss(made_for(made), made, phase)


def in_the_middle(teaches, progress, shares):
    """The same at the beginning and at the end."""
    return torch.eye(len(teaches)) * (2 if 0.4 < progress < 0.6 else 1)


def by_what_is_left(teaches, progress, shares):
    """Nothing on the last exit's loss."""
    return (1 - torch.tensor(shares)).diag()


def test_coefficients_are_looked_at_throughout_the_phase_and_by_the_compute_of_exits():
    with pytest.raises(ValueError, match="has coefficients that change"):
        PhaseLoss(chain(), phased({"coefficients": in_the_middle}))
    own = PhaseLoss(chain(), phased({"coefficients": by_what_is_left}))
    one, other = (own((ROWS.x, labels))[0] for labels in (ROWS.labels, ROWS.labels.roll(1)))
    assert one != other


def test_figures_are_numbers_of_every_exit():
    logits_BMC = np.random.default_rng(0).normal(size=(9, 4, CLASSES))
    labels_B = np.arange(9) % CLASSES
    figures = compute_metrics(chain())((logits_BMC, labels_B))
    by_hand = [(logits_BMC[:, m].argmax(-1) == labels_B).mean() for m in range(4)]
    assert [figures[f"exit_{m}_accuracy"] for m in range(4)] == pytest.approx(by_hand)
    assert figures["mean"] == pytest.approx(np.mean(by_hand))
    logits_MBC = torch.tensor(logits_BMC).movedim(1, 0)
    assert exit_figures(chain(), logits_MBC, torch.tensor(labels_B)) == figures
