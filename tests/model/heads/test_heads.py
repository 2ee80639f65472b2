"""Exit heads: what they compute, what they start from, and that padding is not read."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertForSequenceClassification

import multiexit as mx
from multiexit import testing
from multiexit.model import heads

TOKENS, IMAGE, VECTOR = (None, 16), (8, 12, 12), (10,)

FACTORIES = {
    "linear first": lambda shape, K: heads.LinearHead(shape, K, "first"),
    "linear mean": lambda shape, K: heads.LinearHead(shape, K, "mean"),
    "pooler first": lambda shape, K: heads.PoolerHead(nn.Linear(16, 16), K, "first"),
    "pooler mean": lambda shape, K: heads.PoolerHead(nn.Linear(16, 16), K, "mean"),
    "attention": heads.AttentionHead,
    "mixed": heads.MixedPoolHead,
    "bare": lambda shape, K: nn.Sequential(nn.Flatten(), nn.LazyLinear(K)),
}
FIT = [
    *((name, TOKENS) for name in ("linear first", "linear mean", "attention", "bare")),
    *((name, TOKENS) for name in ("pooler first", "pooler mean")),
    *((name, shape) for name in ("linear mean", "mixed", "bare") for shape in (IMAGE,)),
    *((name, VECTOR) for name in ("linear first", "linear mean", "bare")),
    ("mixed", (3, 7, 7)),
    ("mixed", (3, 3, 3)),
    ("mixed", (3, 8, 12)),
]


@pytest.mark.parametrize(("name", "shape"), FIT, ids=str)
@pytest.mark.parametrize("num_classes", [1, 5])
def test_conforms(name, shape, num_classes):
    testing.check_head(FACTORIES[name], shape, num_classes)


# The formulas


def test_masked_mean_is_the_mean_of_real_tokens():
    feature, lengths = torch.randn(4, 6, 3), [1, 3, 6, 5]
    valid_BT = torch.arange(6) < torch.tensor(lengths).unsqueeze(1)
    pooled = heads.pool_feature(feature, "mean", valid_BT)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(pooled[row], sum(feature[row, :length]) / length)
    nobody = heads.pool_feature(feature, "mean", torch.zeros(4, 6, dtype=torch.bool))
    assert torch.equal(nobody, torch.zeros(4, 3))
    assert torch.equal(heads.pool_feature(feature, "first", valid_BT), feature[:, 0])
    torch.testing.assert_close(heads.pool_feature(feature, "mean"), feature.mean(1))


def test_images_are_averaged_over_positions_and_vectors_kept():
    image, vector = torch.randn(2, 3, 4, 5), torch.randn(2, 7)
    wanted = torch.stack([torch.stack([c.sum() / 20 for c in row]) for row in image])
    torch.testing.assert_close(heads.pool_feature(image, "mean"), wanted)
    assert heads.pool_feature(vector, "mean") is vector


def test_a_pooler_head_is_bert_s_own_classifier():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, num_labels=4,
    )  # fmt: skip
    bert = BertForSequenceClassification(config).eval()
    model = mx.MultiExitModel(mx.wrap(bert), 4, exits=[2]).eval()
    model.heads[0].linear.load_state_dict(bert.classifier.state_dict())
    ids = torch.randint(5, 60, (3, 8))
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3, [1] * 2 + [0] * 6])
    with torch.no_grad():
        mine = model(input_ids=ids, attention_mask=mask)[0]
        theirs = bert(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("size", "kernel"), [(3, 1), (7, 1), (8, 2), (12, 3), (32, 8)])
def test_mixed_pooling_is_shallow_deep_s(size, kernel):
    head = heads.MixedPoolHead((2, size, size), 3)
    assert (head.alpha is None) == (kernel == 1), "what isn't pooled needs no mix"
    alpha = 0.0 if head.alpha is None else head.alpha
    assert 0 <= float(torch.as_tensor(alpha).detach()) <= 1
    image = torch.randn(1, 2, size, size)
    pooled = []
    for channel in image[0]:
        for i in range(0, size - kernel + 1, kernel):
            for j in range(0, size - kernel + 1, kernel):
                patch = channel[i : i + kernel, j : j + kernel]
                pooled.append((alpha * patch.max() + (1 - alpha) * patch.mean()).reshape(1))
    torch.testing.assert_close(head(image)[0], head.linear(torch.cat(pooled)))


def test_attention_head_is_fastbert_s():
    head, x = heads.AttentionHead((None, 16), 3).eval(), torch.randn(1, 5, 16)
    narrow = torch.tanh(head.narrow(x[0]))
    q, k, v = (narrow @ head.attention.in_proj_weight.T + head.attention.in_proj_bias).split(128, 1)
    parts = []
    for h in range(2):
        cut = slice(64 * h, 64 * (h + 1))
        share = (q[0, cut] @ k[:, cut].T / 64**0.5).softmax(-1)
        parts.append(share @ v[:, cut])
    mixed = head.attention.out_proj(torch.cat(parts))
    torch.testing.assert_close(head(x)[0], head.linear(torch.tanh(head.dense(mixed))))


# In a model


OF_TEXT = [head for head in heads.HEADS if head != "mixed-pool"]


@pytest.mark.parametrize("head", OF_TEXT)
@pytest.mark.parametrize("pool", ["first", "mean"])
@pytest.mark.parametrize("kind", ["bert", "albert"])
def test_padding_is_never_read(kind, head, pool, make_backbone, text):
    model = mx.MultiExitModel(make_backbone(kind), 3, head=head, pool=pool).eval()
    inputs = text(6)
    padding = inputs["attention_mask"] == 0
    other = {**inputs, "input_ids": inputs["input_ids"].masked_fill(padding, 33)}
    longer = {key: nn.functional.pad(value, (0, 4)) for key, value in inputs.items()}
    with torch.no_grad():
        logits_MBC = model(**inputs)
        torch.testing.assert_close(model(**other), logits_MBC)
        torch.testing.assert_close(model(**longer), logits_MBC)


@pytest.mark.parametrize("kind", ["bert", "resnet", "mlp"])
@pytest.mark.parametrize("head", ["linear", "own-pooler"])
def test_every_backbone_takes_these(kind, head, make_backbone):
    model = mx.MultiExitModel(make_backbone(kind), 4, exits=2, head=head).eval()
    inputs = model.backbone.example_inputs(2)
    assert model(**inputs).shape == (model.num_exits, 2, 4)


def test_mixed_pooling_on_images(make_backbone):
    model = mx.MultiExitModel(make_backbone("resnet"), 4, exits=3, head="mixed-pool").eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (3, 2, 4)


def test_a_shared_pooler_is_one_object_that_starts_from_the_pretrained_one(make_backbone):
    backbone = make_backbone("bert")
    model = mx.MultiExitModel(backbone, 3)
    first = model.heads[0].pooler
    assert all(head.pooler is first for head in model.heads)
    assert torch.equal(first.weight, backbone.pooler.weight)
    assert torch.equal(first.bias, backbone.pooler.bias)
    assert first.weight is not backbone.pooler.weight
    assert len({id(head.linear) for head in model.heads}) == 5
    added = sum(p.numel() for p in model.heads.parameters())
    assert added == (16 * 16 + 16) + 5 * (16 * 3 + 3)


def test_own_poolers_are_copies_of_the_pretrained_one(make_backbone):
    backbone = make_backbone("albert")
    model = mx.MultiExitModel(backbone, 3, head="own-pooler")
    assert len({id(head.pooler) for head in model.heads}) == 5
    for head in model.heads:
        assert torch.equal(head.pooler.weight, backbone.pooler.weight)
        assert head.pooler.weight.data_ptr() != backbone.pooler.weight.data_ptr()


def chain_with(classifier):
    parts = [nn.Linear(6, 6) for _ in range(3)]
    example = torch.zeros(1, 6)
    return mx.SequentialBackbone(nn.Identity(), parts, example, classifier=classifier)


@pytest.mark.parametrize("head", [None, "own-pooler", "pooler", "linear+lte", "linear+cascade"])
def test_the_last_exit_is_the_network_s_own_head(head):
    classifier = nn.Linear(6, 3)
    backbone = chain_with(classifier)
    model = mx.MultiExitModel(backbone, 3, head=head).eval()
    x = torch.randn(5, 6)
    assert torch.equal(model(x)[-1], classifier(backbone.features(x)[-1]))
    assert torch.equal(model.full(x), classifier(backbone.features(x)[-1]))
    own = heads.OwnHead(backbone.classifier)
    assert own.linear is classifier, "shared with the network, as its stages are"
    early = [p for h in model.heads[:-1] for p in h.parameters()]
    assert not any(p is q for p in early for q in own.parameters())


def test_only_an_exit_after_the_last_stage_of_as_many_classes_is_the_network_s_own():
    classifier = nn.Linear(6, 3)
    backbone = chain_with(classifier)
    two_layers = nn.Linear
    for model in (
        mx.MultiExitModel(backbone, 3, exits=[0, 1]),
        mx.MultiExitModel(backbone, 5),
        mx.MultiExitModel(backbone, 3, head=lambda shape, K: two_layers(shape[-1], K)),
    ):
        assert not any(isinstance(h, heads.OwnHead) for h in model.heads)
        assert not any(p is classifier.weight for p in model.parameters())


def test_a_last_layer_of_another_kind_is_kept_but_not_chained():
    class Cosine(nn.Linear):
        def forward(self, x):
            return super().forward(nn.functional.normalize(x))

    last = nn.Sequential(nn.Tanh(), Cosine(6, 3))
    backbone = mx.wrap(chain_with(None), classifier=last)
    model = mx.MultiExitModel(backbone, 3)
    x = torch.randn(5, 6)
    for mode in (model.eval(), model.train()):  # in training last layers go together
        assert torch.equal(mode(x)[-1], last(backbone.features(x)[-1]))
    with pytest.raises(ValueError, match=r"'\+cascade' chains heads.*Sequential.*set_classifier"):
        mx.MultiExitModel(backbone, 3, head="linear+cascade")
    backbone.set_classifier(None)
    mx.MultiExitModel(backbone, 3, head="linear+cascade")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("fc", r"classifier: Sequential has no module 'fc'; there are \['0'"),
        (3, "classifier is a module, the name of one"),
        (nn.Linear(7, 3), r"classifier doesn't run on the last stage's feature \(6,\)"),
        (nn.Unflatten(1, (2, 3)), r"must give logits \[B, K\].*\(2, 2, 3\)"),
    ],
)
def test_classifiers_that_do_not_fit_are_named(given, message):
    chain = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    with pytest.raises(ValueError, match=message):
        mx.wrap(chain, classifier=given)


def test_a_head_of_ones_own(make_backbone):
    def two_layers(shape, K):
        return nn.Sequential(nn.Linear(shape[-1], 4), nn.Tanh(), nn.Linear(4, K))

    testing.check_head(two_layers, VECTOR)
    model = mx.MultiExitModel(make_backbone("mlp"), 3, head=two_layers).eval()
    feature = model.backbone.features(torch.ones(2, 6))[1]
    assert torch.equal(model(torch.ones(2, 6))[1], model.heads[1].module(feature))


def test_a_head_of_ones_own_that_reads_the_mask(make_backbone, text):
    class Longest(heads.Head):
        def __init__(self, shape, K):
            super().__init__()
            self.linear = nn.Linear(1, K)

        def forward(self, feature, valid_BT=None):
            return self.linear(valid_BT.sum(1, keepdim=True).float())

    model = mx.MultiExitModel(make_backbone("bert"), 2, head=Longest).eval()
    inputs = text(3)
    wanted = model.heads[0].linear(inputs["attention_mask"].sum(1, keepdim=True).float())
    assert torch.equal(model(**inputs)[0], wanted)


# Refusals


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("mlp", {"head": "conv"}, r"no head 'conv'; there are linear.*or pass a function"),
        ("mlp", {"head": "attention"}, r"reads tokens.*\(6,\)"),
        ("bert", {"head": "mixed-pool"}, "mixed pooling reads images"),
        ("mlp", {"head": "mixed-pool"}, "mixed pooling reads images"),
        ("resnet", {"head": "attention"}, "reads tokens"),
        ("resnet", {"head": "pooler"}, r"one width; these have \[16, 32, 64\].*own-pooler"),
        ("bert", {"pool": "max"}, "no pooling 'max'"),
    ],
)
def test_what_does_not_fit_is_named(kind, options, message, make_backbone):
    with pytest.raises(ValueError, match=message):
        mx.MultiExitModel(make_backbone(kind), 3, **options)


# The check itself


class Idle(nn.Linear):
    def __init__(self, shape, K):
        super().__init__(shape[-1], K)
        self.unused = nn.Parameter(torch.zeros(1))


class Leaky(heads.Head):
    def __init__(self, shape, K):
        super().__init__()
        self.linear = nn.Linear(shape[-1], K)

    def forward(self, feature, valid_BT=None):
        return self.linear(feature.mean(1))


class Mixing(nn.Linear):
    def __init__(self, shape, K):
        super().__init__(shape[-1], K)

    def forward(self, feature):
        return super().forward(feature - feature.mean(0))


@pytest.mark.parametrize(
    ("factory", "shape", "message"),
    [
        (Idle, VECTOR, r"\['unused'\] take no part"),
        (Leaky, TOKENS, "padding"),
        (Mixing, VECTOR, "other rows"),
        (lambda shape, K: nn.Linear(shape[-1], K + 1), VECTOR, r"must be \(4, 3\), are \(4, 4\)"),
        (lambda shape, K: nn.Linear(shape[-1], K), TOKENS, r"must be \(4, 3\)"),
    ],
)
def test_the_check_catches_wrong_ones(factory, shape, message):
    with pytest.raises(AssertionError, match=message):
        testing.check_head(factory, shape)


class Noting(nn.Module):
    """Counts its passes in a buffer, and draws a number in each."""

    def __init__(self, shape, num_classes):
        super().__init__()
        self.linear = nn.Linear(shape[-1], num_classes)
        self.passes = nn.Buffer(torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        torch.rand(1)
        return self.linear(x)


class MixingChained(heads.ChainedHead):
    """Leaves what the second row of a batch says, which the next one reads."""

    def __init__(self, shape, num_classes):
        super().__init__()
        self.linear = nn.Linear(shape[-1], num_classes)

    def forward(self, feature, valid_BT, memory):
        logits_BK = self.linear(feature)
        answer = logits_BK + memory["said"] if memory else logits_BK
        return answer, {"said": logits_BK[-1:].expand_as(logits_BK)}


def test_a_model_takes_no_head_that_mixes_rows():
    backbone = mx.wrap(
        nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(2)))
    )
    with pytest.raises(ValueError, match="head of exit 0: a row's answer depends on the other row"):
        mx.MultiExitModel(backbone, 3, head=Mixing)
    with pytest.raises(ValueError, match="head of exit 1: a row's answer depends on the other row"):
        mx.MultiExitModel(backbone, 3, head=MixingChained)
    torch.manual_seed(0)
    drawn = [Noting(shape, 3) for shape in backbone.feature_shapes]
    after = torch.rand(1)
    torch.manual_seed(0)
    model = mx.MultiExitModel(backbone, 3, head=Noting)
    assert torch.equal(torch.rand(1), after)  # the check draws nothing, and leaves nothing
    assert all(head.module.training and head.module.passes == 0 for head in model.heads)
    assert torch.equal(model.heads[-1].module.linear.weight, drawn[-1].linear.weight)


class Counted(TorchDispatchMode):
    """How many operations are run."""

    ops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("head", ["linear", "mixed-pool"])
def test_in_training_one_product_serves_all_exits_of_a_width(head):
    torch.manual_seed(0)
    model = mx.MultiExitModel(mx.cifar_resnet(20), 5, head=head)
    assert not model.backbone.overwritten  # looked for before operations are counted
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 0.0
    x, grads, counts = torch.randn(4, 3, 32, 32), [], []
    for watched in (False, True):
        seen = []
        for exit_head in model.heads if watched else ():
            exit_head.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        model.zero_grad()
        with Counted() as counted:
            logits_MBC = model(x)
            logits_MBC.square().sum().backward()
        grads.append([logits_MBC.detach(), *(p.grad.clone() for p in model.parameters())])
        counts.append(counted.ops)
        assert len(seen) == watched * model.num_exits
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=1e-4)
    assert counts[0] < counts[1]
