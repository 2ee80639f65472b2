"""Static baselines: each against a network or a loss that is written out by hand."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from helpers import Stopped, Text, Watched, assert_same, config, example, fit, tensors
from torch.nn import functional as F
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
)

import multiexit as mx
from multiexit.backbones import rebuild
from multiexit.backbones.attention_heads import attentions
from multiexit.data.order import split_epoch
from multiexit.evaluation import results
from multiexit.recipes import static
from multiexit.recipes.static.importance import masks
from multiexit.recipes.static.pkd import teacher_layers

H, A, LAYERS, CLASSES = 16, 4, 6, 3
SIZES = {
    "vocab_size": 60,
    "hidden_size": H,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": A,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def bert(**changes):
    return mx.wrap(BertModel(BertConfig(**{**SIZES, **changes})))


def albert(groups=1, **changes):
    sizes = {**SIZES, "embedding_size": 8, "num_hidden_groups": groups, **changes}
    return mx.wrap(AlbertModel(AlbertConfig(**sizes)))


def distilbert():
    sizes = {"vocab_size": 60, "dim": H, "n_layers": LAYERS, "n_heads": A, "hidden_dim": 32}
    return mx.wrap(DistilBertModel(DistilBertConfig(**sizes, max_position_embeddings=40)))


def electra():
    return mx.wrap(ElectraModel(ElectraConfig(**SIZES, embedding_size=8)))


MAKE = {
    "bert": bert,
    "albert": albert,
    "albert of 3 groups": lambda: albert(3),
    "distilbert": distilbert,
    "electra": electra,
}


@pytest.fixture(params=MAKE)
def backbone(request):
    return MAKE[request.param]().eval()


def on(backbone, exits=None):
    """A model of one exit at the last stage."""
    return mx.MultiExitModel(backbone, CLASSES, exits or [backbone.num_stages - 1])


def batch(rows=5):
    train = Text()
    made = train.collate([train[row] for row in range(rows)])
    return {k: v for k, v in made.items() if k != "labels"}, made["labels"]


def by_hand(backbone, layers, inputs):
    """The last feature of a run through these layers alone."""
    carry = backbone.start(**inputs)
    for layer in layers:
        carry, feature = backbone.stage(carry, layer)
    return feature


def assert_saves(model, folder):
    """Saved, loaded and run again: the same to the last bit, in a plain encoder."""
    inputs, _ = batch()
    model.eval().save_pretrained(folder)
    again = mx.MultiExitModel.from_pretrained(folder)
    assert type(again.backbone).__name__ == "TransformerBackbone"
    assert_same(tensors(again), tensors(model))
    with torch.no_grad():
        assert torch.equal(again(**inputs), model(**inputs))
    prediction = again.predict(mx.FixedExit(again.num_exits - 1), **inputs)
    torch.testing.assert_close(prediction.logits_BC, model(**inputs)[-1].detach())
    assert again.cost() == model.cost()


# Fewer layers


@pytest.mark.parametrize("layers", [[0, 1, 2], [0, 2, 5], [3], list(range(LAYERS))])
def test_kept_layers_are_those_layers(backbone, layers, tmp_path):
    inputs, _ = batch()
    before = tensors(backbone)
    short = static.keep_layers(backbone, layers)
    with torch.no_grad():
        wanted = by_hand(backbone, layers, inputs)
        assert torch.equal(by_hand(short, range(len(layers)), inputs), wanted)
        for p in short.parameters():
            p.zero_()
    assert_same(tensors(backbone), before)  # copied, not shared
    assert short.num_stages == short.config.num_hidden_layers == len(layers)
    assert rebuild(json.loads(json.dumps(short.spec))).order == short.order
    assert_saves(on(static.keep_layers(backbone, layers)), tmp_path)


def test_parameters_and_macs_fall_by_whole_layers():
    full, short = on(bert()).cost(), on(static.first_layers(bert(), 2)).cost()
    per_layer = sum(p.numel() for p in bert().layers[0].parameters())
    assert full.params_M[0] - short.params_M[0] == 4 * per_layer
    T, inner = 40, 32
    per_layer = 4 * T * H * H + 2 * T * T * H + 2 * T * H * inner
    assert full.macs_M[0] - short.macs_M[0] == 4 * per_layer


def test_albert_stays_shared_and_drops_groups_that_nobody_runs():
    whole, short = albert(3), static.keep_layers(albert(3), [0, 4, 5])
    assert whole.order == [0, 0, 1, 1, 2, 2]
    assert short.order == [0, 1, 1]
    assert len(short.layers) == short.config.num_hidden_groups == 2
    assert short.stage_module(1) is short.stage_module(2)
    uneven = static.keep_layers(albert(2), [0, 3, 4, 5])
    assert uneven.order == [0, 1, 1, 1]  # not what the configuration alone would say
    assert rebuild(uneven.spec).order == [0, 1, 1, 1]


def test_pooler_and_classifier_come_along():
    task = BertForSequenceClassification(BertConfig(**SIZES, num_labels=CLASSES))
    short = static.first_layers(mx.wrap(task), 2)
    model = on(short)
    assert torch.equal(model.heads[0].linear.weight, task.classifier.weight)
    own = model.heads[0].read.layers.pooler
    assert torch.equal(own.weight, task.bert.pooler.dense.weight)


def test_spread_layers_are_the_papers_every_other():
    for depth in (12, 24):
        for every in (2, 3, 4, 6, 12):  # 1/p
            kept = [d - 1 for d in range(1, depth + 1) if d % every != 0]
            assert static.spread_layers(depth, len(kept)) == kept
    assert static.spread_layers(16, 8) == [0, 2, 4, 6, 8, 10, 12, 14]  # fairseq's own example


@pytest.mark.parametrize("layers", [[], [2, 1], [1, 1], [0, 6], [-1, 2]])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(ValueError, match=r"rise within 0\.\.5"):
        static.keep_layers(bert(), layers)


def test_what_cannot_be_shortened_is_refused():
    with pytest.raises(ValueError, match="BERT-like"):
        static.keep_layers(mx.cifar_resnet(20), [0])
    with pytest.raises(ValueError, match=r"\.inner"):
        static.first_layers(static.LayerDrop(bert()), 2)
    for n in (0, 7, 2.0, True):
        with pytest.raises(ValueError, match=r"1\.\.6"):
            static.first_layers(bert(), n)


# One exit


def test_a_single_exit_says_what_the_last_one_said():
    inputs, _ = batch()
    model = on(bert(), [1, 3]).eval()
    model.temperature_M.copy_(torch.tensor([1.0, 2.0]))
    one = static.single_exit(model)
    assert one.exits == (3,)
    assert torch.equal(one(**inputs)[0], model(**inputs)[1])
    assert not one.training
    with torch.no_grad():
        one.heads[0].linear.weight.zero_()
    assert model.heads[1].linear.weight.abs().sum() > 0
    with pytest.raises(ValueError, match="reads features"):
        static.single_exit(model, bert(hidden_size=32))


def test_fine_tuning_is_ordinary_cross_entropy():
    train, rate = Text(), 0.1
    model = on(static.first_layers(bert(**STILL), 2))
    model.heads[0].dropout.p = 0.0
    still = copy.deepcopy(model)
    run = config(max_steps=1, batch_size=len(train), momentum=0.0, lr=rate)
    history = fit(model, static.fine_tune(), run, train)
    whole = train.collate([train[row] for row in split_epoch(len(train), 0, 0, False)[0]])
    labels = whole.pop("labels")
    loss = F.cross_entropy(still(**whole)[0], labels)
    assert history.steps[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    for after, before in zip(model.parameters(), still.parameters(), strict=True):
        slope = torch.zeros_like(before) if before.grad is None else before.grad
        torch.testing.assert_close(after, before - rate * slope, atol=1e-5, rtol=1e-4)


def test_distilbert_is_wrapped_fine_tuned_and_saved(tmp_path):
    model = on(distilbert())
    before = tensors(model)
    fit(model, static.fine_tune(), config(max_steps=2, output=tmp_path), Text())
    still = [k for k, v in model.named_parameters() if torch.equal(v, before[k])]
    assert not still
    assert_saves(model, tmp_path / "again")
    assert mx.MultiExitModel.from_pretrained(tmp_path / "model").policy == mx.FixedExit(0)


def test_a_static_row_beside_those_of_the_full_network():
    full, model = on(bert()).cost(), on(static.first_layers(bert(), 2))
    outputs = mx.collect(model, Text())
    (row,) = mx.sweep(outputs, [mx.FixedExit(0)])
    assert (row.speedup_layers, row.speedup_macs) == (1, 1)
    beside = static.relative_to(row, model.cost(), full, time=2.5)
    assert beside.speedup_layers == 3
    assert beside.speedup_macs == full.full_macs / model.cost().macs_M[0]
    assert beside.speedup_time == 2.5
    assert replace(beside, speedup_layers=1, speedup_macs=1, speedup_time=None) == row
    with pytest.raises(ValueError, match="has 6"):
        static.relative_to(row, on(bert(), "all").cost(), full)


# LayerDrop


def count_runs(backbone, run):
    """How often each distinct layer is run."""
    runs = [0] * len(backbone.layers)
    hooks = []
    for index, layer in enumerate(backbone.layers):
        hooks.append(
            layer.register_forward_hook(lambda *_, i=index: runs.__setitem__(i, runs[i] + 1))
        )
    run()
    for hook in hooks:
        hook.remove()
    return runs


def test_layerdrop_at_rate_0_and_in_evaluation_is_the_encoder():
    inputs, _ = batch()
    plain = bert(**STILL)
    for rate, mode in ((0.0, True), (0.9, False)):
        dropping = static.LayerDrop(plain, rate).train(mode)
        for one, other in zip(dropping.features(**inputs), plain.features(**inputs), strict=True):
            assert torch.equal(one, other)


def test_layerdrop_skips_the_right_share_and_nothing_else():
    inputs, _ = batch(2)
    dropping = static.LayerDrop(bert(**STILL), 0.3).train()
    with torch.no_grad():
        runs = count_runs(dropping.inner, lambda: [dropping.features(**inputs) for _ in range(200)])
    share = 1 - sum(runs) / (200 * LAYERS)
    assert share == pytest.approx(0.3, abs=0.05)  # 3.8 standard deviations
    assert max(runs) - min(runs) < 60
    torch.manual_seed(3)
    kept = [layer for layer in range(LAYERS) if float(torch.rand(())) >= 0.3]
    assert 0 < len(kept) < LAYERS
    torch.manual_seed(3)
    assert torch.equal(dropping.features(**inputs)[-1], by_hand(dropping.inner, kept, inputs))


def test_a_skipped_layer_has_zero_gradient():
    inputs, labels = batch()
    dropping = static.LayerDrop(bert(**STILL), 0.5).train()
    model = on(dropping).train()
    torch.manual_seed(4)
    runs = count_runs(
        dropping.inner, lambda: F.cross_entropy(model(**inputs)[0], labels).backward()
    )
    assert {0, 1} == set(runs)
    for layer, run in zip(dropping.inner.layers, runs, strict=True):
        slope = sum(p.grad.abs().sum() for p in layer.parameters())
        assert bool(slope > 0) == bool(run)


def test_layerdrop_trains_saves_as_the_plain_encoder_and_is_cut(tmp_path):
    model = on(static.LayerDrop(albert(), 0.5))
    fit(model, static.fine_tune(), config(max_steps=3, output=tmp_path), Text())
    assert_saves(model, tmp_path / "again")
    inputs, _ = batch()
    whole = model.backbone.inner
    short = static.single_exit(
        model, static.keep_layers(whole, static.spread_layers(LAYERS, 3))
    ).eval()
    feature = by_hand(whole.eval(), [0, 2, 4], inputs)
    assert torch.equal(short(**inputs)[0], model.heads[0].eval()(feature))
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            static.LayerDrop(bert(), rate)


# Attention heads


KEPT = [[0, 2], [1], [0, 1, 2, 3], [3], [0, 3], [1, 2, 3]]


def kept_for(backbone):
    return KEPT[: len(attentions(backbone))]


def test_kept_heads_give_what_zeroed_heads_give(backbone):
    inputs, _ = batch()
    kept = kept_for(backbone)
    pruned = static.keep_heads(backbone, kept)
    d = H // A

    def without(heads):
        def hook(module, args):
            mask = torch.zeros(A)
            mask[heads] = 1
            return (args[0] * mask.repeat_interleave(d),)

        return hook

    for each, heads in zip(attentions(backbone), kept, strict=True):
        each.outward.register_forward_pre_hook(without(heads))
    with torch.no_grad():
        for one, other in zip(pruned.features(**inputs), backbone.features(**inputs), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_heads_take_their_parameters_and_macs_with_them(backbone):
    kept, d, T = kept_for(backbone), H // A, 30
    pruned = static.keep_heads(backbone, kept)
    gone = [A - len(heads) for heads in kept]
    before, after = on(backbone), on(pruned)
    inputs = backbone.example_inputs(1, T)
    assert len(attentions(backbone)) == len(kept)
    each = [4 * H * d + 3 * d] * len(gone)
    fewer = before.cost(inputs).params_M[0] - after.cost(inputs).params_M[0]
    assert fewer == sum(g * p for g, p in zip(gone, each, strict=True))
    uses = [backbone.order.count(index) for index in range(len(kept))]
    per_head = 4 * T * H * d + 2 * T * T * d
    fewer = before.cost(inputs).macs_M[0] - after.cost(inputs).macs_M[0]
    assert fewer == per_head * sum(g * u for g, u in zip(gone, uses, strict=True))


def test_pruned_heads_are_saved_with_the_model(backbone, tmp_path):
    pruned = static.keep_heads(backbone, kept_for(backbone))
    assert_saves(on(pruned), tmp_path / "pruned")
    again = static.keep_heads(
        pruned, [heads[-1:] and [len(heads) - 1] for heads in kept_for(backbone)]
    )
    assert again.spec["heads"] == [[heads[-1]] for heads in kept_for(backbone)]  # of the whole one
    short = static.keep_layers(again, [0, 4, 5])
    assert_saves(on(short), tmp_path / "short")
    assert_saves(on(static.keep_layers(pruned, [1, 5])), tmp_path / "shorter")
    fit(on(pruned), static.fine_tune(), config(max_steps=1), Text())


@pytest.mark.parametrize(
    "kept", [KEPT[:5], [[], *KEPT[1:]], [[1, 0], *KEPT[1:]], [[4], *KEPT[1:]], [[0, 0], *KEPT[1:]]]
)
def test_heads_that_are_not_there_are_refused(kept):
    with pytest.raises(ValueError, match="heads"):
        static.keep_heads(bert(), kept)


@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_importance_is_the_gradient_of_an_explicit_mask(kind):
    """Row by row, by A·∂L/∂A and by a difference of losses at ξ = 1 ± ε, one use at a time."""
    backbone = MAKE[kind]().double()
    model = on(backbone).double().eval()
    inputs, labels = batch(4)
    data = [{**inputs, "labels": labels}]
    there, d = attentions(backbone), H // A
    found = static.head_importance(model, data, normalise=False)

    def loss(row, use, head, xi):
        seen = []

        def hook(module, args):
            mask = torch.ones(H, dtype=torch.double)
            if len(seen) == use:
                mask[head * d : (head + 1) * d] = xi
            seen.append(1)
            return (args[0] * mask,)

        handles = [each.outward.register_forward_pre_hook(hook) for each in there]
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        with torch.no_grad():
            value = F.cross_entropy(model(**one)[0], labels[row : row + 1])
        for handle in handles:
            handle.remove()
        return float(value)

    eps = 1e-5
    for use, head in ((0, 0), (LAYERS - 1, 3)) if kind == "bert" else ((None, 1),):
        uses = range(LAYERS) if use is None else [use]
        slopes = [
            abs(loss(row, u, head, 1 + eps) - loss(row, u, head, 1 - eps)) / (2 * eps)
            for row in range(4)
            for u in uses
        ]
        wanted = sum(slopes) / 4
        layer = 0 if use is None else use
        assert float(found[layer][head]) == pytest.approx(wanted, rel=1e-4, abs=1e-9)


def test_importance_is_the_dot_product_of_the_paper_and_normalised_by_layer():
    model = on(bert()).eval()
    inputs, labels = batch(4)
    there = attentions(model.backbone)
    total = torch.zeros(LAYERS, A)
    for row in range(4):
        outputs = []
        hooks = [
            each.outward.register_forward_pre_hook(
                lambda m, args, kept=outputs: kept.append(args[0]) or args[0].retain_grad()
            )
            for each in there
        ]
        one = {name: value[row : row + 1] for name, value in inputs.items()}
        F.cross_entropy(model(**one)[0], labels[row : row + 1]).backward()
        for index, value in enumerate(outputs):
            dots = (value * value.grad).unflatten(-1, (A, H // A)).sum((0, 1, 3))
            total[index] += dots.abs().detach()
        for hook in hooks:
            hook.remove()
    model.zero_grad()
    rows = torch.utils.data.Subset(Text(), range(4))
    raw = torch.stack(static.head_importance(model, rows, normalise=False))
    unit = torch.stack(static.head_importance(model.train(), rows, batch_size=3))
    torch.testing.assert_close(raw, total / 4, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(unit, raw / raw.square().sum(1, keepdim=True).sqrt())
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    with masks(there, H // A) as used:
        pass
    assert used == [[]] * LAYERS
    with pytest.raises(ValueError, match="empty"):
        static.head_importance(model, [])


def test_the_least_important_heads_go_by_hand():
    importance = [
        torch.tensor(row) for row in ([0.9, 0.1, 0.4], [0.3, 0.2, 0.1], [0.05, 0.06, 0.01])
    ]
    # Best of each layer stays: 0.9, 0.3, 0.06. Of the rest 0.01, 0.05, 0.1, 0.1, 0.2, 0.4 in turn.
    assert static.heads_to_keep(importance, 0.0) == [[0, 1, 2]] * 3
    assert static.heads_to_keep(importance, 0.3) == [[0, 1, 2], [0, 1, 2], [1]]
    assert static.heads_to_keep(importance, 5 / 9) == [[0, 2], [0], [1]]
    assert static.heads_to_keep(importance, 6 / 9) == [[0], [0], [1]]
    with pytest.raises(ValueError, match=r"0\.667 at most"):
        static.heads_to_keep(importance, 0.8)
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            static.heads_to_keep(importance, share)


# BERT-PKD


def test_pkds_loss_is_the_papers():
    torch.manual_seed(5)
    teacher = on(bert())
    student = on(static.first_layers(bert(**STILL), 3), "all")
    for head in student.heads:
        head.dropout.p = 0.0
    still, frozen = copy.deepcopy(student), tensors(teacher)
    train, alpha, tau, beta, rate = Text(), 0.6, 4.0, 50.0, 0.05
    recipe = static.pkd(teacher, 3, alpha, tau, beta)
    run = config(max_steps=1, batch_size=len(train), momentum=0.0, lr=rate)
    fit(student, recipe, run, train)
    whole = train.collate([train[row] for row in split_epoch(len(train), 0, 0, False)[0]])
    labels = whole.pop("labels")
    B = len(labels)
    with torch.no_grad():
        answers = teacher.eval()(**whole)[0]
        states_T = teacher.backbone.features(**whole)
    states_S = still.backbone.features(**whole)
    logits = still.eval()(**whole)[-1]
    answer_part, state_part = 0.0, 0.0
    for b in range(B):
        p, q = (answers[b] / tau).softmax(0), (logits[b] / tau).softmax(0)
        for c in range(CLASSES):
            answer_part = answer_part + p[c] * (p[c].log() - q[c].log())
        for own, taught in ((0, 1), (1, 3)):  # 2 and 4 of 6, counted from 1
            s, t = states_S[own][b, 0], states_T[taught][b, 0]
            state_part = state_part + ((s / s.norm() - t / t.norm()) ** 2).sum()
    wanted_extra = alpha * tau**2 * answer_part / (B * CLASSES) + beta * state_part / (B * 2 * H)
    loss = (1 - alpha) * F.cross_entropy(logits, labels) + wanted_extra
    loss.backward()
    for (name, after), before in zip(student.named_parameters(), still.parameters(), strict=True):
        slope = torch.zeros_like(before) if before.grad is None else before.grad
        torch.testing.assert_close(after, before - rate * slope, atol=2e-5, rtol=1e-3, msg=name)
    assert_same(tensors(teacher), frozen)
    assert all(p.grad is None for p in teacher.parameters())
    assert not [name for name in student.state_dict() if name not in still.state_dict()]


def test_pkd_ends_in_a_short_network_of_one_exit(tmp_path):
    teacher = on(albert())
    student = on(static.first_layers(albert(), 3), "all")
    history = fit(student, static.pkd(teacher, 3), config(max_steps=3, lr=0.01), Text(), Text())
    row = history.epochs[-1]
    assert row["mean"] == row["exits"][-1]["score"]  # judged by the last exit alone
    early = student.heads[0].linear.weight
    assert early.grad is None
    one = static.single_exit(student)
    inputs, _ = batch()
    assert torch.equal(one.eval()(**inputs)[0], student.eval()(**inputs)[-1])
    assert_saves(one, tmp_path)


def test_pkd_of_the_labels_alone_is_fine_tuning():
    torch.manual_seed(5)
    teacher, student = on(bert()), on(static.first_layers(bert(), 2), "all")
    other = copy.deepcopy(student)
    fit(student, static.pkd(teacher, 2, alpha=0.0, beta=0.0), config(max_steps=2), Text())
    fit(other, static.fine_tune(), config(max_steps=2), Text())
    assert_same(tensors(student), tensors(other))


def test_pkds_layers_are_the_papers():
    count = {(12, 6, "skip"): [2, 4, 6, 8, 10], (12, 6, "last"): [7, 8, 9, 10, 11]}
    count |= {(12, 3, "skip"): [4, 8], (12, 3, "last"): [10, 11]}
    for (depth, layers, pattern), wanted in count.items():
        assert [layer + 1 for layer in teacher_layers(depth, layers, pattern)] == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 7}, r"1\.\.6"),
        ({"layers": 1}, "2 layers"),
        ({"alpha": 1.0}, "below 1"),
        ({"alpha": 1.5}, "alpha"),
        ({"temperature": 0.0}, "temperature"),
        ({"beta": -1.0}, "beta"),
        ({"pattern": "odd"}, "pattern"),
    ],
)
def test_pkd_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        static.pkd(on(bert()), **{"layers": 3, **options})


def test_pkd_refuses_other_students():
    recipe = static.pkd(on(bert()), 3)
    with pytest.raises(ValueError, match="exits='all'"):
        fit(on(static.first_layers(bert(), 3)), recipe, config(max_steps=1), Text())
    narrow = bert(hidden_size=8, num_hidden_layers=3)
    with pytest.raises(ValueError, match="width 8"):
        fit(on(narrow, "all"), recipe, config(max_steps=1), Text())
    with pytest.raises(ValueError, match="regression"):
        static.pkd(mx.MultiExitModel(bert(), 1), 3)


# BERT-of-Theseus


@pytest.mark.parametrize("kind", ["bert", "albert", "albert of 3 groups", "distilbert"])
def test_theseus_runs_the_predecessor_at_0_and_the_successor_at_1(kind):
    inputs, _ = batch()
    predecessor = MAKE[kind]().eval()
    ship = static.Theseus(predecessor, 3)
    for module in ship.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for p in ship.layers.parameters():
            p.add_(0.1 * torch.randn_like(p))
        old = predecessor.features(**inputs)[1::2]
        new = ship.successor.eval().features(**inputs)
        ship.train()
        for p in (0.0, 1.0):
            ship.rate = p
            wanted = new if p else old
            for one, other in zip(ship.features(**inputs), wanted, strict=True):
                torch.testing.assert_close(one, other)
        ship.rate = 0.0
        for one, other in zip(ship.eval().features(**inputs), new, strict=True):
            torch.testing.assert_close(one, other)


def test_theseus_replaces_the_right_share():
    inputs, _ = batch(2)
    ship = static.Theseus(bert(**STILL), 3).train()
    ship.rate = 0.4
    with torch.no_grad():
        runs = count_runs(ship.successor, lambda: [ship.features(**inputs) for _ in range(200)])
    assert sum(runs) / 600 == pytest.approx(0.4, abs=0.08)


def test_theseus_trains_the_successors_layers_alone(tmp_path):
    predecessor = on(bert())
    model = static.single_exit(predecessor, static.Theseus(predecessor.backbone, 3))
    before, old = tensors(model), tensors(predecessor)
    (frozen,) = model.backbone._predecessor
    frozen_before = tensors(frozen)
    rates = []
    recipe = static.theseus(base=0.25, reach=0.5)
    recipe = replace(
        recipe,
        phases=tuple(
            replace(
                phase,
                before_step=lambda m, t, f=phase.before_step: (
                    f(m, t),
                    rates.append(m.backbone.rate),
                ),
            )
            for phase in recipe.phases
        ),
    )
    fit(model, recipe, config(max_steps=4, lr=0.05, output=tmp_path), Text())
    assert rates == [0.25, 0.625, 1.0, 1.0, *[1.0] * 4]
    assert_same(tensors(predecessor), old)
    assert_same(tensors(frozen), frozen_before)
    assert all(p.grad is None for p in frozen.parameters())
    after = dict(model.named_parameters())
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {name for name in after if name.startswith("backbone.layers.")}
    inputs, _ = batch()
    plain = static.successor(model).eval()
    assert torch.equal(plain(**inputs), model.eval()(**inputs))
    assert_saves(plain, tmp_path / "plain")
    again = mx.MultiExitModel.from_pretrained(tmp_path / "model")
    assert again.backbone.num_stages == 3


def test_theseus_steps_where_nothing_was_replaced():
    predecessor = on(bert())
    model = static.single_exit(predecessor, static.Theseus(predecessor.backbone, 2))
    recipe = static.theseus(base=0.0)
    first = replace(recipe, phases=(replace(recipe.phases[0], before_step=_never),))
    before = tensors(model)
    fit(model, first, config(max_steps=2), Text())
    assert_same(tensors(model), before)  # gradients of 0, not none


def _never(model, progress):
    model.backbone.rate = 0.0


def test_theseus_refuses():
    with pytest.raises(ValueError, match="blocks of one size"):
        static.Theseus(bert(), 4)
    with pytest.raises(ValueError, match=r"1\.\.6"):
        static.Theseus(bert(), 0)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        static.theseus(base=1.1)
    with pytest.raises(ValueError, match="reach"):
        static.theseus(reach=0.0)
    with pytest.raises(ValueError, match="Theseus"):
        static.successor(on(bert()))
    with pytest.raises(ValueError, match=r"\.successor"):
        static.keep_layers(static.Theseus(bert(), 3), [0])


# In the trainer


def shipped():
    torch.manual_seed(7)
    predecessor = on(bert())
    return static.single_exit(predecessor, static.Theseus(predecessor.backbone, 3))


def dropping():
    torch.manual_seed(7)
    return on(static.LayerDrop(bert(), 0.5))


@pytest.mark.parametrize(
    ("make", "recipe"), [(shipped, static.theseus(0.2)), (dropping, static.fine_tune())]
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(make, recipe, tmp_path):
    """What layers are drawn after the stop is what would have been drawn."""
    settings = config(epochs=3, optimizer="adamw", lr=1e-3, checkpoint_every=1)
    whole = make()
    fit(whole, recipe, settings, Text())
    stopped = replace(settings, output=tmp_path)
    with pytest.raises(Stopped):
        fit(make(), recipe, stopped, Watched(Text(), stop=7))
    again = make()
    fit(again, recipe, replace(stopped, resume=True), Text())
    assert_same(tensors(again), tensors(whole))


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_all_train_at_half_precision(precision):
    settings = config(mixed_precision=precision, max_steps=2)
    student = on(static.first_layers(bert(), 3), "all")
    runs = [(shipped(), static.theseus(0.2)), (dropping(), static.fine_tune())]
    for model, recipe in [*runs, (student, static.pkd(on(bert()), 3))]:
        history = fit(model, recipe, settings, Text())
        assert all(torch.tensor(row["loss"]).isfinite() for row in history.steps)
        assert {p.dtype for p in model.parameters()} == {torch.float32}


# The example


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    """A folder with SST-2's files of random words, a tiny BERT and a tiny DistilBERT."""
    folder = tmp_path_factory.mktemp("glue")
    words = ["cat", "dog", "saw", "ate", "runs", "house"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    for name, encoder in (("bert", bert()), ("distilbert", distilbert())):
        config = encoder.config
        made = BertModel(config) if name == "bert" else DistilBertModel(config)
        made.save_pretrained(folder / name)
        BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / name)
    (folder / "SST-2").mkdir()
    for split, rows in (("train", 40), ("dev", 12)):
        lines = [f"{words[row % 6]} {words[row % 5]}\t{row % 2}" for row in range(rows)]
        text = "\n".join(["sentence\tlabel", *lines])
        (folder / "SST-2" / f"{split}.tsv").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        ("first", 3),
        ("layerdrop", 3),
        ("headprune", 6),
        ("pkd", 3),
        ("theseus", 3),
        ("distilbert", 6),
    ],
)
def test_the_example_gives_a_row_of_the_table(method, layers, glue, tmp_path):
    name = "distilbert" if method == "distilbert" else "bert"
    words = ("--method", method, "--task", "sst2", "--backbone", glue / name, "--data-dir", glue)
    example(
        "examples/nlp/static_baselines.py",
        *(*words, "--layers", 3, "--max-steps", 1, "--output", tmp_path),
    )
    written = results.read_results(tmp_path / "results.json")
    (exit,), (row,) = written["exits"], written["policies"]
    assert exit["layers"] == layers
    assert exit["macs"] > 0
    assert exit["parameters"] > 0
    assert row["speedup_layers"] == LAYERS / layers
    assert row["speedup_time"] > 0
    assert (row["speedup_macs"] > 1) == (method != "distilbert")
    assert written["about"]["recipe"] == method
    model = mx.MultiExitModel.from_pretrained(tmp_path / "model")
    assert model.cost().params_M[0] == exit["parameters"]
    assert results.results_page(tmp_path)
