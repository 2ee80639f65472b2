"""What holds for models of BERT holds for networks taken apart by their own forward."""

import copy
import pickle
import threading
import warnings

import pytest
import torch
import transformers
from helpers import assert_same, changed, config, fit, same_answers, tensors
from torch import nn
from torch.utils.data import Dataset
from zoo import ONE_LENGTH, TOKENS, ZOO
from zoo_sizes import small_config

import multiexit as mx
from multiexit.serving.onnx import tracing

TEXTS = ["decoder/gpt2", "decoder/llama", "text/deberta-v2", "text/mt5", "text/xlnet"]
OTHERS = ["image/swin", "image/convnext", "audio/wav2vec2"]


def wrapped(network, input_shape=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mx.wrap(network, input_shape=input_shape)


def made(key, network=None, exits="all"):
    """A model of three classes whose exits disagree, in evaluation mode, and six rows."""
    inputs = ZOO[key].inputs(6, 0)
    torch.manual_seed(1)
    backbone = wrapped(network or ZOO[key].make(), (TOKENS,) if key in ONE_LENGTH else None)
    model = mx.MultiExitModel(backbone, 3, exits).eval()
    for head in model.heads:
        for p in head.parameters():
            nn.init.normal_(p, std=0.5)
    return model, inputs


def policy_for(model, inputs):
    """One by which half of the rows leave at the first exit."""
    with torch.no_grad():
        return mx.MaxProb(float(model(**inputs)[0].softmax(-1).amax(-1).quantile(0.5)))


def rows_of(inputs, rows):
    return {name: value[rows] for name, value in inputs.items()}


class Rows(Dataset):
    """Rows of a network's own kind, with labels."""

    def __init__(self, key, rows=16):
        self.inputs = ZOO[key].inputs(rows, 0)
        self.labels = torch.arange(rows) % 3

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return {**rows_of(self.inputs, row), "labels": self.labels[row]}


# Training


@pytest.mark.parametrize("key", TEXTS + OTHERS)
def test_a_step_of_leebert_is_the_same_with_stages_run_twice(key):
    ends = []
    for twice in (False, True):
        model, _ = made(key)
        before = tensors(model)
        torch.manual_seed(0)
        history = fit(
            model,
            mx.recipe("leebert", cycle=1),
            config(epochs=1, batch_size=4, checkpoint_gradients=twice, lr=0.01),
            Rows(key),
        )
        assert len(history.weights) == 2
        ends.append(tensors(model))
        assert len(changed(before, ends[-1])) > len(before) / 2
    assert_same(*ends)


def test_layers_are_left_out_in_training_by_layerdrop():
    network = ZOO["audio/wav2vec2"].make()
    network.config.layerdrop = 0.5
    model, inputs = made("audio/wav2vec2", network)
    model.train()
    torch.manual_seed(0)
    calls = [len(model.backbone.start(**inputs)["plan"].calls) for _ in range(8)]
    assert min(calls) < model.backbone.num_stages
    model(**inputs).sum().backward()
    model.eval()
    assert len(model.backbone.start(**inputs)["plan"].calls) == model.backbone.num_stages


# Answers


@pytest.mark.parametrize("key", TEXTS + OTHERS)
def test_streams_and_copies_of_an_engine_answer_as_predict(key):
    model, inputs = made(key)
    policy = policy_for(model, inputs)
    wanted = model.predict(policy, **inputs)
    assert len(wanted.exit_B.unique()) > 1
    engine = mx.Engine(model, policy)
    same_answers(engine.predict(**inputs), wanted)
    parts = [
        rows_of(inputs, slice(0, 1)),
        rows_of(inputs, slice(1, 4)),
        rows_of(inputs, slice(4, 6)),
    ]
    answers = list(engine.stream(parts, batch_size=4, window=3))
    assert torch.equal(torch.cat([answer.exit_B for answer in answers]), wanted.exit_B)
    same_answers(copy.deepcopy(engine).predict(**inputs), wanted)
    if key != "audio/wav2vec2":  # torch pickles no parametrisations, such as its weight norm
        same_answers(pickle.loads(pickle.dumps(engine)).predict(**inputs), wanted)


@pytest.mark.parametrize("key", ["decoder/gpt2", "audio/wav2vec2"])
def test_two_threads_at_once_are_answered_rightly(key):
    model, inputs = made(key)
    policy = policy_for(model, inputs)
    halves = [rows_of(inputs, slice(0, 3)), rows_of(inputs, slice(3, 6))]
    wanted = [model.predict(policy, **half) for half in halves]
    engine, got = mx.Engine(model, policy), [[], []]

    def answer(half):
        got[half] += [engine.predict(**halves[half]) for _ in range(5)]

    threads = [threading.Thread(target=answer, args=(half,)) for half in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answers, one in zip(got, wanted, strict=True):
        assert len(answers) == 5
        for prediction in answers:
            same_answers(prediction, one)


@pytest.mark.parametrize("key", ["decoder/gpt2", "image/convnext", "text/fnet"])
def test_compiled_engines_answer_as_predict(key, monkeypatch):
    monkeypatch.setattr(torch, "compile", _eager(torch.compile))
    model, inputs = made(key)
    policy = policy_for(model, inputs)
    wanted = model.predict(policy, **inputs)
    same_answers(mx.Engine(model, policy, compile=True).predict(**inputs), wanted)


def _eager(compile):
    return lambda *args, **kwargs: compile(
        *args, **{**kwargs, "backend": "aot_eager", "mode": None}
    )


@pytest.mark.parametrize("key", ["decoder/gpt2", "image/convnext", "text/xlm", "text/fnet"])
@pytest.mark.usefixtures("onnx_operators")
def test_exports_agree(key, tmp_path):
    model, inputs = made(key, exits=[0, 1])
    policy = policy_for(model, inputs)
    parity = mx.export(model, tmp_path / "exported", policy, rows=[inputs])
    assert parity.same_exit == 1
    assert parity.largest_difference < 1e-4


@pytest.mark.usefixtures("onnx_operators")
def test_experts_are_exported_by_the_way_that_the_refusal_names(tmp_path):
    network = ZOO["decoder/mixtral"].make()
    model, inputs = made("decoder/mixtral", network, exits=[0])
    with pytest.raises(ValueError, match=r"no operator for .*grouped_mm.*'batched_mm'") as refusal:
        mx.export(model, tmp_path / "exported", policy_for(model, inputs))
    assert "\n" not in str(refusal.value)
    network.set_experts_implementation("batched_mm")
    model, inputs = made("decoder/mixtral", network, exits=[0])
    parity = mx.export(model, tmp_path / "exported", policy_for(model, inputs), rows=[inputs])
    assert parity.same_exit == 1


class Counting(nn.Module):
    """A network of texts that goes through its tokens one by one, as some state spaces do."""

    def forward(self, *tensors):
        (x_BT,) = tensors
        return sum(x_BT[:, t] * t for t in range(x_BT.shape[1]))


class Deciding(nn.Module):
    def forward(self, *tensors):
        (x_BT,) = tensors
        return -x_BT if bool((x_BT > 0).any()) else x_BT


@pytest.mark.parametrize(
    ("network", "said"), [(Counting(), "loop over them"), (Deciding(), "by the values of tensors")]
)
def test_what_cannot_be_traced_is_told_in_a_sentence(network, said):
    with pytest.raises(Exception, match=r".") as failure:
        tracing.trace(network, [torch.randn(2, 5)], [{0: tracing.ANY, 1: tracing.ANY}])
    assert said in tracing.reason(failure.value)


@pytest.mark.parametrize("key", TEXTS + OTHERS)
def test_costs_are_counted(key):
    model, inputs = made(key)
    cost = model.cost()
    assert list(cost.macs_M) == sorted({*cost.macs_M})
    assert 0 < cost.full_macs <= cost.macs_M[-1]
    assert len(mx.profile(model, inputs=inputs, batch_sizes=(1, 2)).stages_ms) == model.num_exits


# Texts


@pytest.mark.parametrize("key", TEXTS)
def test_padding_may_stand_anywhere(key):
    model, inputs = made(key)
    first = inputs["attention_mask"].int().argmax(1).tolist()
    ids_BT, mask_BT = (
        torch.stack([row.roll(-n) for row, n in zip(inputs[name], first, strict=True)])
        for name in ("input_ids", "attention_mask")
    )
    wanted = model(**inputs)
    lengths = mask_BT.sum(1).tolist()
    left = torch.stack([ids_BT[i].roll(12 - n) for i, n in enumerate(lengths)])
    left_mask = torch.stack([mask_BT[i].roll(12 - n) for i, n in enumerate(lengths)])
    got = model(input_ids=left, attention_mask=left_mask)
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
    wide = torch.cat([torch.zeros_like(ids_BT[:, :2]), ids_BT, torch.zeros_like(ids_BT[:, :3])], 1)
    got = model(input_ids=wide, attention_mask=_between(mask_BT))
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def _between(mask_BT):
    blank = torch.zeros_like(mask_BT)
    return torch.cat([blank[:, :2], mask_BT, blank[:, :3]], 1)


@pytest.mark.parametrize("key", TEXTS)
def test_texts_without_a_mask_or_by_their_embeddings(key):
    network = ZOO[key].make()
    model, inputs = made(key, network)
    whole = rows_of(inputs, slice(0, 6, 3))
    wanted = model(**whole)
    ids_BT = whole["input_ids"]
    torch.testing.assert_close(model(input_ids=ids_BT), wanted, rtol=1e-4, atol=1e-5)
    embeds_BTH = network.get_input_embeddings()(ids_BT)
    got = model(inputs_embeds=embeds_BTH, attention_mask=whole["attention_mask"])
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


# Networks in another state


@pytest.mark.parametrize("key", TEXTS + OTHERS)
def test_half_precision_is_wrapped(key):
    model = mx.MultiExitModel(wrapped(ZOO[key].make().to(torch.bfloat16)), 3).eval()
    answer = model.predict(mx.MaxProb(0.4), **ZOO[key].inputs(2, 0))
    assert answer.logits_BC.isfinite().all()


@pytest.mark.parametrize("key", TEXTS + OTHERS)
def test_a_network_in_training_keeps_its_modes(key):
    network = ZOO[key].make().train()
    frozen = next(part for part in network.modules() if not [*part.children()]).eval()
    modes = {name: part.training for name, part in network.named_modules()}
    before = tensors(network)
    backbone = wrapped(network)
    assert {name: part.training for name, part in network.named_modules()} == modes
    assert not frozen.training
    assert_same(tensors(network), before)
    assert backbone.spec is not None


class Derived(transformers.GPT2ForSequenceClassification):
    """A class of one's own with another name."""


def _small_gpt2(kind=transformers.GPT2ForSequenceClassification, **settings):
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "num_labels": 3}
    sizes |= {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    return kind(transformers.GPT2Config(**sizes, **settings)).eval()


def _answers(model):
    ids_BT = torch.tensor([[5, 6, 7, 0, 0], [5, 6, 7, 8, 9]])
    with torch.no_grad():
        return model(input_ids=ids_BT, attention_mask=(ids_BT != 0).long())


def test_a_network_that_was_loaded_is_saved_and_loaded_again(tmp_path):
    _small_gpt2().save_pretrained(tmp_path / "own")
    model = mx.MultiExitModel(mx.wrap(str(tmp_path / "own")), 3).eval()
    model.save_pretrained(tmp_path / "ours")
    again = mx.MultiExitModel.from_pretrained(tmp_path / "ours").eval()
    assert torch.equal(_answers(again), _answers(model))


def test_a_network_made_in_half_precision_is_loaded_in_it(tmp_path):
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    network = transformers.LlamaModel(transformers.LlamaConfig(**sizes)).eval()
    model = mx.MultiExitModel(mx.wrap(network.to(torch.bfloat16)), 3).to(torch.bfloat16).eval()
    assert model.backbone.spec is not None
    model.save_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path).eval()
    assert next(again.backbone.parameters()).dtype == torch.bfloat16


def test_a_class_of_one_s_own_keeps_its_head():
    network = _small_gpt2(Derived)
    model = mx.MultiExitModel(mx.wrap(network), 3).eval()
    ids_BT = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        theirs_BC = network(input_ids=ids_BT).logits
        torch.testing.assert_close(model(input_ids=ids_BT)[-1], theirs_BC)


def test_settings_that_a_class_does_not_list_come_back(tmp_path):
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    config = transformers.LlamaConfig(**sizes, is_causal=False)
    model = mx.MultiExitModel(mx.wrap(transformers.LlamaModel(config)), 3).eval()
    model.save_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path).eval()
    assert torch.equal(_answers(again), _answers(model))


def test_a_setting_changed_after_wrapping_is_no_description(tmp_path):
    network = _small_gpt2()
    model = mx.MultiExitModel(mx.wrap(network), 3).eval()
    network.config.scale_attn_weights = False
    with pytest.warns(UserWarning, match="scale_attn_weights"):
        model.save_pretrained(tmp_path)


def test_padding_without_a_mask_is_refused_where_the_last_token_counts():
    model = mx.MultiExitModel(mx.wrap(_small_gpt2()), 3).eval()
    with torch.no_grad(), pytest.raises(ValueError, match=r"padding token 0.*attention_mask"):
        model(input_ids=torch.tensor([[5, 6, 0]]))


def test_a_decoder_without_any_attention_answers_as_its_own_forward_without_a_cache():
    config = small_config("qwen3_next")
    config.layer_types = ["linear_attention"] * config.num_hidden_layers
    network = transformers.Qwen3NextForSequenceClassification(config).eval()
    model = mx.MultiExitModel(wrapped(network), 3).eval()
    inputs = ZOO["decoder/gpt2"].inputs(4, 0)
    with torch.no_grad():
        theirs_BC = network(**inputs, use_cache=False).logits
        torch.testing.assert_close(model(**inputs)[-1], theirs_BC, rtol=1e-4, atol=1e-5)
