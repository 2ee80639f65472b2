"""A battery over all recipes: each trains, saves, loads and predicts, on text and on images."""

from itertools import pairwise

import pytest
import torch
from helpers import (
    OF_CLASSES,
    Table,
    Text,
    assert_same,
    chain,
    config,
    differences,
    fit,
    images,
    saved_state,
    tensors,
)
from transformers import BertConfig, BertModel

import multiexit as mx
from multiexit import policies
from multiexit.losses import topology


def text_model(head):
    torch.manual_seed(1)
    sizes = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
    }
    return mx.MultiExitModel(mx.wrap(BertModel(BertConfig(**sizes))), 3, head=head)


def image_model(head):
    """Poolers and attention are for text; vectors are shared or mixed at one width alone."""
    torch.manual_seed(1)
    backbone = mx.cifar_resnet(20, in_channels=1, size=8)
    head = head and head.replace("own-pooler", "linear").replace("attention", "linear")
    of_one_width = head is not None and head.endswith(("+mix", "+lte"))
    return mx.MultiExitModel(backbone, 3, [0, 1, 2] if of_one_width else [0, 4, 8], head)


def image_rows():
    return images(24)


KINDS = {"text": (text_model, Text), "images": (image_model, image_rows)}
LEARN = {
    "leebert",
    "leebert-lle",
    "leebert-slo",
    "leebert-blo",
    "leebert-clo-v1",
    "leebert-hyper",
    "leebert-group-dro",
    "fastbert-clo-v2",
    "l2w-den",
}
EVERY_STEP = LEARN - {"leebert-hyper", "l2w-den"}
IDLE = {"right-tool": {"heads.0.mix"}}  # the share of one vector alone is 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OF_CLASSES)
def test_every_recipe_trains_saves_loads_and_predicts(name, kind, tmp_path):
    make, rows = KINDS[kind]
    recipe = mx.recipe(name)
    model, train = make(recipe.head), rows()
    dev = None if recipe.finish is None else train if kind == "text" else train.for_evaluation()
    before = tensors(model)
    run = config(max_steps=5, batch_size=4, lr=0.05, output=tmp_path, clip=1.0)
    history = fit(model, recipe, run, train, dev)

    assert [row["phase"] for row in history.steps] == [
        phase for phase in range(len(recipe.phases)) for _ in range(5)
    ]
    assert all(torch.tensor(row["loss"]).isfinite() for row in history.steps)
    still = {k for k, v in model.named_parameters() if torch.equal(v, before[k])}
    behind = range(model.exits[-1] + 1, model.backbone.num_stages)
    never_run = ("embeddings", *(f"stages.{stage}." for stage in behind))
    idle = {k for k in still if not any(part in k for part in never_run)}
    assert idle == IDLE.get(name, set()), f"not trained: {idle}"

    (learner,) = {phase.learner for phase in recipe.phases}
    teaches_MM = topology.resolve(recipe.phases[0].topology, model.num_exits)
    first = learner.weights(teaches_MM, seed=0).state_dict()
    omega = saved_state(tmp_path)["stepper"]["omega"]["weights"]
    assert (differences(first, omega) != []) == learner.learns == (name in LEARN)
    weights = [W_MM for _, W_MM in history.weights]
    assert len(weights) == (5 if name in LEARN - {"l2w-den"} else 0)
    if name in EVERY_STEP:
        assert all(a != b for a, b in pairwise(weights))
        assert all(w != 1 for row in weights[:1] for w in row if w is not None)

    again = mx.MultiExitModel.from_pretrained(tmp_path / "model")
    assert_same(tensors(again), tensors(model))
    assert again.policy == model.policy
    if name in ("msdnet", "beem"):
        assert len(again.policy.threshold) == model.num_exits - 1, "a threshold for each early exit"
    else:
        assert again.policy == recipe.policy
    outputs = mx.collect(model, train if kind == "text" else train.for_evaluation())
    batch = train.collate([train[row] for row in range(6)]) if kind == "text" else None
    inputs = (
        {k: v for k, v in batch.items() if k != "labels"}
        if batch
        else {"x": train.for_evaluation().__getitems__(range(6))[0]}
    )
    prediction = again.predict(again.policy, **inputs)
    certainty_MB = outputs.certainty_MB
    assert (certainty_MB is not None) == (name in ("berxit", "consistentee"))
    exit_B, answer_BC = policies.answers(
        again.policy,
        outputs.logits_MBC[:, :6],
        None if certainty_MB is None else certainty_MB[:, :6],
    )
    assert torch.equal(prediction.exit_B, exit_B)
    torch.testing.assert_close(prediction.logits_BC, answer_BC, atol=1e-4, rtol=1e-4)


def test_two_runs_of_a_recipe_share_nothing():
    recipe = mx.recipe("leebert")
    first, second = chain(), chain()
    one = fit(first, recipe, config(), Table())
    two = fit(second, recipe, config(), Table())
    assert_same(tensors(first), tensors(second))
    assert not differences(one.steps, two.steps)
