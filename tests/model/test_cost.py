"""Layers, MACs and parameters per exit against sums done by hand."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    MixtralConfig,
    MixtralModel,
)

import multiexit as mx
from multiexit.model import cost


def test_a_chain_of_linear_layers():
    chain = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 6))
    model = mx.MultiExitModel(mx.wrap(chain), 3)
    trunk, heads = [4 * 8, 8 * 8, 8 * 6], [8 * 3, 8 * 3, 6 * 3]
    got = model.cost()
    assert got.layers_M == (1, 2, 3)
    assert got.macs_M == tuple(sum(trunk[: m + 1]) + sum(heads[: m + 1]) for m in range(3))
    assert got.full_macs == sum(trunk) + heads[-1]
    own = [4 * 8 + 8, 8 * 8 + 8, 8 * 6 + 6]
    exits = [8 * 3 + 3, 8 * 3 + 3, 6 * 3 + 3]
    assert got.params_M == tuple(sum(own[: m + 1]) + sum(exits[: m + 1]) for m in range(3))
    assert got.shares_M == pytest.approx([m / got.macs_M[-1] for m in got.macs_M])
    assert got.shares_M[-1] == 1


class Product(nn.Module):
    def forward(self, x, weight):
        return x @ weight


class HandsOn(nn.Module):
    """Gives a part of its parameter to a module within, as DeBERTa does of its positions."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(9, 4))
        self.product = Product()

    def forward(self, x):
        return self.product(x, self.weight[:4])


def test_parts_of_parameters_may_be_handed_on_and_are_trained_afterwards_as_before():
    model = mx.MultiExitModel(mx.wrap(nn.Sequential(HandsOn(), HandsOn()), input_shape=(4,)), 2)
    model.backbone.stage_module(0).requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    assert model.cost().macs_M == (16 + 8, 2 * 16 + 2 * 8)
    assert cost.stage_shares(model.backbone) == [0.5, 1]
    assert [p.requires_grad for p in model.parameters()] == before
    assert len({*before}) == 2


def test_exits_at_some_stages_pay_for_the_stages_between_and_their_own_heads():
    chain = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    got = mx.MultiExitModel(mx.wrap(chain), 3, exits=[1, 3]).cost()
    assert got.layers_M == (2, 4)
    assert got.macs_M == (2 * 16 + 12, 4 * 16 + 2 * 12)
    assert got.params_M == (2 * 20 + 15, 4 * 20 + 2 * 15)
    assert got.full_macs == 4 * 16 + 12


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("tokens", [5, 32])
def test_a_bert_layer(attention, tokens):
    H, T, depth = 16, tokens, 3
    config = BertConfig(
        vocab_size=30, hidden_size=H, num_hidden_layers=depth, num_attention_heads=2,
        intermediate_size=4 * H, max_position_embeddings=40, attn_implementation=attention,
    )  # fmt: skip
    model = mx.MultiExitModel(mx.wrap(BertModel(config)), 2)
    ids = torch.ones(1, T, dtype=torch.long)
    got = model.cost({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    layer = 12 * T * H**2 + 2 * T**2 * H
    head = H**2 + 2 * H  # pooler and classifier, on one token
    assert got.macs_M == tuple((layer + head) * (m + 1) for m in range(depth))
    assert got.full_macs == layer * depth + head


def test_the_example_of_a_text_network_is_128_tokens(make_backbone):
    config = BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64,
    )  # fmt: skip
    got = mx.MultiExitModel(mx.wrap(BertModel(config)), 2, head="linear").cost()
    assert got.full_macs == 12 * 128 * 16**2 + 2 * 128**2 * 16 + 32


def test_a_convolution():
    chain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1))
    got = mx.MultiExitModel(mx.wrap(chain, input_shape=(3, 8, 8)), 5).cost()
    first, second = 3 * 9 * 4 * 64, 4 * 9 * 6 * 16
    assert got.macs_M == (first + 4 * 5, first + second + 4 * 5 + 6 * 5)


@pytest.mark.parametrize("both", [False, True])
def test_an_lstm(both):
    lstm = nn.LSTM(6, 5, num_layers=2, batch_first=True, bidirectional=both)
    width = 10 if both else 5
    wanted = 3 * 4 * (1 + both) * 5 * ((6 + 5) + (width + 5))  # 3 tokens, 4 gates
    assert cost._macs(lambda: lstm(torch.randn(1, 3, 6)))[1] == wanted
    matrices = [tuple(p.shape) for p in lstm.parameters()]
    assert cost._recurrent((1, 3, 6), matrices) == 2 * wanted  # on a GPU they are one list


@pytest.mark.parametrize("name", ["grouped_mm", "batched_mm"])
def test_experts_count_as_the_plain_loop_over_them(name):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 50}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    network = MixtralModel(MixtralConfig(**sizes, **heads))

    def macs(implementation):
        network.set_experts_implementation(implementation)
        return mx.MultiExitModel(mx.wrap(network), 2).cost().macs_M

    assert macs(name) == macs("eager")
    assert macs(name)[0] > 128 * 2 * 3 * 16 * 32  # tokens, experts of each, matrices


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_weights_that_are_computed_from_others(mode):
    """As those of HuBERT's positions are, in the middle of an evaluation."""
    plain, normed = nn.Linear(4, 8), weight_norm(nn.Linear(4, 8))
    with mode():
        costs = [
            mx.MultiExitModel(mx.wrap(nn.Sequential(first, nn.Linear(8, 8))), 3).cost()
            for first in (plain, normed)
        ]
    assert costs[0].macs_M == costs[1].macs_M


def test_shared_parameters_count_once():
    H = 16
    config = AlbertConfig(
        vocab_size=30, embedding_size=8, hidden_size=H, num_hidden_layers=6,
        num_attention_heads=2, intermediate_size=32, num_hidden_groups=2,
    )  # fmt: skip
    backbone = mx.wrap(AlbertModel(config))
    got = mx.MultiExitModel(backbone, 2).cost().params_M
    group = sum(p.numel() for p in backbone.stage_module(0).parameters())
    head, pooler = 2 * H + 2, H * H + H
    rises = [later - earlier for earlier, later in itertools.pairwise(got)]
    assert rises == [head, head, head + group, head, head]
    total = sum(p.numel() for p in backbone.parameters())
    assert got[-1] == total + pooler + 6 * head
    assert got[0] == total - group + pooler + head


def test_counting_leaves_the_model_as_it_was(make_backbone):
    model = mx.MultiExitModel(make_backbone("resnet"), 3).train()
    model.heads[2].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    first = model.cost()
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.cost() == first
    assert all(p.grad is None for p in model.parameters())


def test_stage_shares_rise_to_one(make_backbone):
    shares = cost.stage_shares(make_backbone("mlp"))
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    shares = cost.stage_shares(make_backbone("resnet"))
    assert sorted(shares) == shares
    assert shares[-1] == 1
