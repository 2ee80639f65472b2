"""Networks of texts that read the padding too, at one length; and those of unusual layouts."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    FlaubertConfig,
    FlaubertModel,
    FNetConfig,
    FNetForTokenClassification,
    GPT2Config,
    GPT2Model,
    NystromformerModel,
    SqueezeBertModel,
    XLMConfig,
    XLMModel,
    XLNetModel,
)
from zoo import ONE_LENGTH, TOKENS, ZOO
from zoo_sizes import small_config

import multiexit as mx

T = 16
READ_PADDING = sorted(key for key in ONE_LENGTH if key in ZOO)


def model_of(key):
    """A network, and a model of it at T tokens whose last exit is its own head."""
    network = ZOO[key].make()
    backbone = mx.wrap(network, input_shape=(T,))
    return network, mx.MultiExitModel(backbone, 3).eval()


def filled(inputs):
    """Rows padded at their end to T tokens, by a naive loop."""
    rows = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True):
        real = [int(token) for token, valid in zip(ids, mask, strict=True) if valid]
        rows.append((real + [0] * (T - len(real)), [1] * len(real) + [0] * (T - len(real))))
    ids, masks = zip(*rows, strict=True)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(masks)}


@pytest.mark.parametrize("key", READ_PADDING)
@torch.no_grad()
def test_rows_answer_as_in_the_library_at_this_length(key):
    network, model = model_of(key)
    inputs = ZOO[key].inputs(5, 0)
    wanted = network(**filled(inputs))
    got = model(**inputs)
    if hasattr(wanted, "logits"):
        torch.testing.assert_close(got[-1], wanted.logits, rtol=1e-3, atol=1e-4)
    else:
        feature = model.backbone.features(**inputs)[-1]
        torch.testing.assert_close(feature, wanted[0], rtol=1e-3, atol=1e-4)
    ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"]
    others = {
        "left": {name: value.flip(1) for name, value in inputs.items()},
        "no mask": {"input_ids": ids_BT},
        "other tokens in the padding": {
            "input_ids": torch.where(mask_BT == 1, ids_BT, 7),
            "attention_mask": mask_BT,
        },
        "wider": {name: torch.nn.functional.pad(value, (0, 3)) for name, value in inputs.items()},
    }
    wanted = {"left": model(**{n: v.flip(1) for n, v in filled(inputs).items()})}
    for name, batch in others.items():
        torch.testing.assert_close(model(**batch), wanted.get(name, got), msg=name)


def test_streams_of_texts_of_all_lengths_are_answered_as_alone():
    key = "text/fnet"
    _, model = model_of(key)
    inputs = ZOO[key].inputs(6, 0)
    engine = mx.Engine(model, mx.MaxProb(0.4))
    batches = []
    for n, ids in zip(inputs["attention_mask"].sum(1), inputs["input_ids"], strict=True):
        batches.append({"input_ids": ids[None, : int(n)]})
    answers = list(engine.stream(batches, batch_size=4, window=3))
    got = torch.cat([answer.logits_BC for answer in answers])
    wanted = model.predict(mx.MaxProb(0.4), **inputs).logits_BC
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_token_types_of_padding_say_nothing():
    backbone = mx.wrap(ZOO["text/fnet"].make(), input_shape=(T,))
    ids, mask = torch.randint(5, 30, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    types = torch.zeros_like(ids)
    features = [
        backbone.features(input_ids=ids, attention_mask=mask, token_type_ids=given)[-1]
        for given in (types, types + (1 - mask))
    ]
    assert torch.equal(*features)


def test_what_does_not_fit_is_refused():
    _, model = model_of("text/convbert")
    with pytest.raises(ValueError, match="rows of 17 tokens, this network takes 16"):
        model(input_ids=torch.full((1, 17), 5))
    with pytest.raises(ValueError, match="takes no position_ids"):
        model(input_ids=torch.full((1, 4), 5), position_ids=torch.arange(4)[None])
    with pytest.raises(ValueError, match="takes no inputs_embeds"):
        model(inputs_embeds=torch.zeros(1, 4, 32))


def small_gpt2(**settings):
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30, "n_positions": 20}
    return GPT2Model(GPT2Config(**sizes, **settings)).eval()


@pytest.mark.parametrize(
    ("make", "shape", "reason"),
    [
        (lambda: small_gpt2(pad_token_id=0), (3, 8, 8), r"input_shape=\(T,\)"),
        (lambda: small_gpt2(pad_token_id=0), (21,), "20 tokens at most"),
        (small_gpt2, (8,), "no padding token"),
        (lambda: BertModel(BertConfig(hidden_size=12, num_hidden_layers=2)), (8,), "any number"),
    ],
)
def test_lengths_that_a_network_can_not_have_are_refused(make, shape, reason):
    with pytest.raises(ValueError, match=reason):
        mx.wrap(make(), input_shape=shape)


def test_rows_that_meet_in_landmarks_are_refused():
    config = small_config("nystromformer")
    config.num_landmarks, config.segment_means_seq_len = 4, 12
    with pytest.raises(ValueError, match="can't wrap NystromformerModel"):
        mx.wrap(NystromformerModel(config), input_shape=(12,))


def test_a_folder_is_wrapped_at_a_length_and_saved_with_it(tmp_path):
    network, model = model_of("text/fnet")
    network.save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match=r"input_shape=\(T,\)"):
        mx.wrap(str(tmp_path / "own"))
    loaded = mx.MultiExitModel(mx.wrap(str(tmp_path / "own"), input_shape=(T,)), 3).eval()
    loaded.save_pretrained(tmp_path / "ours")
    again = mx.MultiExitModel.from_pretrained(tmp_path / "ours").eval()
    inputs = ZOO["text/fnet"].inputs(4, 0)
    for other in (loaded, again):
        torch.testing.assert_close(other(**inputs)[-1], model(**inputs)[-1])
    with pytest.raises(ValueError, match="this network takes 16"):
        again(input_ids=torch.full((1, 17), 5))


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_answer_in_their_places(side):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 64}
    network = FNetForTokenClassification(FNetConfig(**sizes, pad_token_id=0, num_labels=3)).eval()
    model = mx.MultiExitModel(
        mx.wrap(network, input_shape=(T,)), 3, problem="token-classification"
    ).eval()
    inputs = ZOO["text/fnet"].inputs(5, 0)
    if side == "left":
        inputs = {name: value.flip(1) for name, value in inputs.items()}
    with torch.no_grad():
        wanted_BTC = network(input_ids=filled(inputs)["input_ids"]).logits
        logits_MBTC = model(**inputs)
    assert logits_MBTC.shape == (3, 5, TOKENS, 3)
    prediction = model.predict(mx.FixedExit(2), **inputs)
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        wanted = wanted_BTC[row, : int(mask.sum())]
        torch.testing.assert_close(logits_MBTC[-1, row, mask], wanted)
        torch.testing.assert_close(prediction.logits_BC[row, mask], wanted)


# Layouts of features


def features_and_states(network, backbone, inputs):
    """The features, and the library's own hidden states."""
    with torch.no_grad():
        states = network(**inputs, output_hidden_states=True).hidden_states[1:]
        return backbone.features(**inputs), states


@pytest.mark.parametrize("length", [1, 2, 5, 12])
def test_xlnets_features_have_rows_first_for_any_batch_and_length(length):
    network = XLNetModel(small_config("xlnet")).eval()
    backbone = mx.wrap(network).eval()
    for rows in (1, 2, length):
        ids_BT = torch.randint(5, 64, (rows, length))
        for types in ({}, {"token_type_ids": torch.randint(2, (rows, length))}):
            inputs = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT), **types}
            for mine, wanted in zip(*features_and_states(network, backbone, inputs), strict=True):
                torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_a_length_as_long_as_tokens_are_wide_tells_them_apart():
    network = SqueezeBertModel(small_config("squeezebert")).eval()
    backbone = mx.wrap(network, input_shape=(32,)).eval()
    ids_BT = torch.randint(5, 64, (2, 32))
    with torch.no_grad():
        wanted = network(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))[0]
        torch.testing.assert_close(backbone.features(input_ids=ids_BT)[-1], wanted)
    fnet = ZOO["text/fnet"].make().base_model
    backbone = mx.wrap(fnet, input_shape=(32,)).eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone.features(input_ids=ids_BT)[-1], fnet(ids_BT)[0])


SIZES = {"emb_dim": 16, "n_layers": 3, "n_heads": 2, "vocab_size": 40, "n_langs": 1}


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (XLMModel, XLMConfig(**SIZES, causal=True)),
        (FlaubertModel, FlaubertConfig(**SIZES)),
        (FlaubertModel, FlaubertConfig(**SIZES, gelu_activation=False)),
    ],
)
def test_layers_in_parallel_lists_give_the_hidden_states(kind, config):
    torch.manual_seed(0)
    network = kind(config).eval()
    backbone = mx.wrap(network).eval()
    ids_BT = torch.randint(5, 40, (3, 7))
    mask_BT = (torch.arange(7) < torch.tensor([[7], [4], [6]])).long()
    inputs = {"input_ids": ids_BT, "attention_mask": mask_BT}
    for mine, wanted in zip(*features_and_states(network, backbone, inputs), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
    assert len(list(backbone.parameters())) == len(list(network.parameters()))


def test_a_changed_forward_over_parallel_lists_is_refused():
    class Other(XLMModel):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            if output.hidden_states is not None:
                output["hidden_states"] = tuple(2 * x for x in output.hidden_states)
            return output

    with pytest.raises(ValueError, match="isn't its layers one after another"):
        mx.wrap(Other(XLMConfig(**SIZES)))


def test_flaubert_leaves_layers_out_in_training():
    network = FlaubertModel(FlaubertConfig(**SIZES, layerdrop=0.5))
    backbone = mx.wrap(network).train()
    torch.manual_seed(0)
    ids_BT = torch.randint(5, 40, (2, 6))
    calls = {len(backbone.start(input_ids=ids_BT)["plan"].calls) for _ in range(20)}
    assert min(calls) < 3
    assert max(calls) == 3
