"""A model cut for good behind an exit."""

import copy
import pickle
import warnings

import pytest
import torch
import torchvision
import transformers
from helpers import chain, convnet
from networks import TINY
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BigBirdConfig,
    BigBirdForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

import multiexit as mx
from multiexit.model.truncation import Truncated

DEPTH = TINY["num_hidden_layers"]
TEXT = TINY | {"initializer_range": 0.5, "pad_token_id": 0}
IMAGE = {
    **{"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 8},
    **{"intermediate_size": 32, "patch_size": 4, "initializer_range": 0.5},
}
POOLERS = {
    "albert": {"embedding_size": 8, "num_hidden_groups": 1},
    "albert in groups": {"embedding_size": 8, "num_hidden_groups": 5},
    "bert": {},
    "camembert": {},
    "mpnet": {},
    "roberta": {},
    "xlm-roberta": {},
}
DECODERS = {
    "gpt2": {},
    "gemma3_text": {"head_dim": 8, "num_key_value_heads": 1, "sliding_window": 4},
    "llama": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 1},
}


def encoder(kind, **settings):
    """A tiny bare network of a type, with random weights."""
    name, _, _ = kind.partition(" ")
    config = transformers.AutoConfig.for_model(name, **{**TEXT, **settings})
    return transformers.AutoModel.from_config(config)


def classifier_of(network):
    """The name of the library's class that classifies by such a network."""
    return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(network.config)].__name__


def with_exits(network, head=None, classes=3, labels=None):
    """A model whose exits have temperatures and, but for a decoder's, biases."""
    model = mx.MultiExitModel(mx.wrap(network), classes, head=head, labels=labels).eval()
    model.temperature_M.copy_(1 + torch.rand(model.num_exits))
    return model


def without_biases(model):
    """As a decoder's own class has its last layer."""
    for head in model.heads:
        if head.linear.bias is not None:
            torch.nn.init.zeros_(head.linear.bias)
    return model


def logits(network, inputs):
    with torch.no_grad():
        output = network(**inputs)
    return getattr(output, "logits", output)


def check(model, exit, inputs, kind, unread=()):
    """A cut network is of this class, answers as the exit does, and shares its weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        static = mx.truncate(model, exit)
    assert type(static).__name__ == kind
    wanted_BC = model.predict(mx.FixedExit(exit), **inputs).logits_BC
    torch.testing.assert_close(logits(static, inputs), wanted_BC, rtol=1e-5, atol=1e-5)
    places = {p.data_ptr() for p in model.parameters()}
    copied = [n for n, p in static.named_parameters() if p.data_ptr() not in places]
    last = ("classifier.weight", "classifier.bias", "classifier.out_proj.weight")
    assert set(copied) <= {*last, "classifier.out_proj.bias", "score.weight", *unread}
    return static


def round_trip(static, inputs, folder, auto=AutoModelForSequenceClassification):
    """A cut network answers the same when the library has loaded it."""
    static.save_pretrained(folder)
    again, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert type(again) is type(static)
    assert torch.equal(logits(again.eval(), inputs), logits(static, inputs))
    return again


@pytest.mark.parametrize("exit", [0, 2, DEPTH - 1])
@pytest.mark.parametrize("kind", POOLERS)
def test_an_encoder_is_cut_into_its_own_class(kind, exit, text, tmp_path):
    network = encoder(kind, **POOLERS[kind])
    model = with_exits(network, "pooler", labels=["no", "maybe", "yes"])
    inputs = text(6)
    if "albert" not in kind and kind != "bert":  # one segment
        inputs.pop("token_type_ids")
    again = round_trip(check(model, exit, inputs, classifier_of(network)), inputs, tmp_path)
    assert again.config.num_hidden_layers == exit + 1
    assert again.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert again.config.problem_type == "single_label_classification"


@pytest.mark.parametrize("exit", [0, 2, DEPTH - 1])
@pytest.mark.parametrize("kind", DECODERS)
def test_a_decoder_is_cut_into_its_own_class(kind, exit, text, tmp_path):
    network = encoder(kind, **DECODERS[kind])
    model = without_biases(with_exits(network))
    inputs = {k: v for k, v in text(6).items() if k != "token_type_ids"}
    again = round_trip(check(model, exit, inputs, classifier_of(network)), inputs, tmp_path)
    assert again.config.num_hidden_layers == exit + 1


@pytest.mark.parametrize("exit", [0, 1, 2])
@pytest.mark.parametrize("whole", [False, True])
def test_a_vit_is_cut_into_its_own_class(exit, whole, tmp_path):
    config = ViTConfig(**IMAGE, num_labels=3)
    model = with_exits(ViTForImageClassification(config) if whole else ViTModel(config))
    inputs = {"pixel_values": torch.randn(4, 3, 8, 8)}
    static = check(model, exit, inputs, "ViTForImageClassification")
    round_trip(static, inputs, tmp_path, AutoModelForImageClassification)


@pytest.mark.parametrize(
    "make", [BertForSequenceClassification, DistilBertForSequenceClassification]
)
def test_the_networks_own_head_comes_back_as_it_was(make, text):
    network = make(make.config_class(**TEXT, num_labels=3)).eval()
    model = with_exits(network)
    model.temperature_M.fill_(1)
    inputs = text(5)
    if make is DistilBertForSequenceClassification:
        inputs.pop("token_type_ids")
    static = check(model, model.num_exits - 1, inputs, make.__name__)
    assert torch.equal(logits(static, inputs), logits(network, inputs))
    assert static.state_dict().keys() == network.state_dict().keys()


def test_a_decoders_own_head_comes_back_as_it_was(text):
    config = LlamaConfig(**TEXT, num_labels=3, num_key_value_heads=1)
    model = with_exits(LlamaForSequenceClassification(config).eval())
    inputs = {k: v for k, v in text(5).items() if k != "token_type_ids"}
    check(model, DEPTH - 1, inputs, "LlamaForSequenceClassification")


def test_weights_that_a_class_has_and_doesnt_read_are_no_hindrance(text, tmp_path):
    sizes = {"attention_type": "original_full", "num_labels": 3, "sep_token_id": 2}
    model = with_exits(BigBirdForSequenceClassification(BigBirdConfig(**TEXT, **sizes)))
    model.temperature_M.fill_(1)
    unread = ("bert.pooler.weight", "bert.pooler.bias")
    static = check(model, DEPTH - 1, text(4), "BigBirdForSequenceClassification", unread)
    round_trip(static, text(4), tmp_path)


def test_regression_learned_exits_and_other_precisions_are_cut_too(text, tmp_path):
    static = check(
        with_exits(encoder("bert"), classes=1), 1, text(4), "BertForSequenceClassification"
    )
    assert static.config.problem_type == "regression"
    model = with_exits(encoder("bert"), head="pooler+lte")
    check(model, 1, text(4), "BertForSequenceClassification")
    half = with_exits(BertModel(BertConfig(**TINY)).bfloat16())
    static = mx.truncate(half, 1)
    assert {p.dtype for p in static.parameters()} == {torch.bfloat16}
    round_trip(static, text(4), tmp_path)
    double = with_exits(BertModel(BertConfig(**TINY)).double())
    check(double, 1, text(4), "BertForSequenceClassification")


def test_a_cut_network_of_a_loaded_model(text, tmp_path):
    model = with_exits(encoder("roberta"), labels=["no", "maybe", "yes"])
    model.save_pretrained(tmp_path)
    inputs = {k: v for k, v in text(6).items() if k != "token_type_ids"}
    loaded = mx.MultiExitModel.from_pretrained(tmp_path)
    check(loaded, 2, inputs, "RobertaForSequenceClassification")
    check(mx.keep_exits(loaded, [1, 3]), 1, inputs, "RobertaForSequenceClassification")


def test_the_model_stays_as_it_was(bert):
    model, _ = bert
    for p in model.backbone.parameters():
        p.requires_grad_(False)
    model.heads[2].train()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    static = mx.truncate(model, 2)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert model.backbone.config.num_hidden_layers == DEPTH
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not static.training
    assert mx.truncate(model.train(), 2).training


# Exits that no class of transformers can be


def distilbert():
    return with_exits(DistilBertModel(DistilBertConfig(**TEXT)))


def longformer():
    """Its class lets the first token attend to all, which the bare network doesn't."""
    network = encoder("longformer", attention_window=[4] * DEPTH, sep_token_id=2)
    return with_exits(network, "pooler")


NO_CLASS = {
    "LongformerForSequenceClassification answers otherwise": longformer,
    r"\(first, Linear, ReLU, Linear\), the exit's \(first, Linear, tanh, Linear\)": distilbert,
    r"\(first, Linear, tanh, Linear\), the exit's \(first, Linear\)": lambda: with_exits(
        encoder("bert"), head="linear"
    ),
    "no class of transformers or timm has a head like AttentionHead": lambda: with_exits(
        encoder("bert"), head="attention"
    ),
    "LlamaForSequenceClassification has no bias": lambda: with_exits(
        LlamaForCausalLM(LlamaConfig(**TEXT, num_key_value_heads=1))
    ),
    "T5ForSequenceClassification": lambda: with_exits(
        T5EncoderModel(
            T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2)
        )
    ),
}


@pytest.mark.parametrize("reason", NO_CLASS)
def test_an_exit_that_fits_no_class_is_a_plain_module_with_a_warning(reason, text):
    model = NO_CLASS[reason]()
    inputs = {k: v for k, v in text(6).items() if k != "token_type_ids"}
    with pytest.warns(UserWarning, match=f"exit 1 fits no class of transformers: .*{reason}"):
        static = mx.truncate(model, 1)
    check_plain(model, 1, static, inputs)


def check_plain(model, exit, static, inputs):
    assert type(static) is Truncated
    wanted_BC = model.predict(mx.FixedExit(exit), **inputs).logits_BC
    assert torch.equal(logits(static, inputs), wanted_BC)
    places = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in static.parameters()} <= places
    later = {
        p.data_ptr(): p.nbytes
        for stage in range(model.exits[exit] + 1, model.backbone.num_stages)
        for p in model.backbone.stage_module(stage).parameters()
    }
    assert not later.keys() & {p.data_ptr() for p in static.parameters()}
    small, whole = (len(pickle.dumps(module)) for module in (static, model))
    assert small < whole - sum(later.values())
    assert static.backbone.num_stages == model.exits[exit] + 1


OTHERS = {
    "chain": lambda: chain(),
    "convnet": lambda: convnet(),
    "cifar-resnet": lambda: mx.MultiExitModel(mx.cifar_resnet(20), 3),
    "torchvision": lambda: mx.MultiExitModel(
        mx.wrap(torchvision.models.resnet18(num_classes=3), input_shape=(3, 32, 32)), 3
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_any_other_network_is_a_plain_module(kind):
    model = OTHERS[kind]().eval()
    model.temperature_M.copy_(1 + torch.rand(model.num_exits))
    x = torch.randn(3, *next(iter(model.example_inputs().values())).shape[1:])
    for exit in (0, model.num_exits - 2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            static = mx.truncate(model, exit)
        check_plain(model, exit, static, {"x": x})
        assert torch.equal(static(x), logits(static, {"x": x}))


def test_shared_layers_stay_where_an_earlier_stage_has_them(make_backbone, text):
    model = mx.MultiExitModel(make_backbone("albert"), 3, head="linear").eval()
    with pytest.warns(UserWarning, match="fits no class"):
        static = mx.truncate(model, 1)
    inputs = text(4)
    wanted_BC = model.predict(mx.FixedExit(1), **inputs).logits_BC
    assert torch.equal(logits(static, inputs), wanted_BC)


# What can't be cut


@pytest.mark.parametrize("exit", [-1, 4, True, 1.0, "1", None])
def test_an_exit_that_isnt_there_is_named(exit):
    with pytest.raises(ValueError, match=rf"one of 0\.\.3; got {exit!r}"):
        mx.truncate(chain(), exit)


def test_anything_but_a_model_is_named():
    with pytest.raises(ValueError, match=r"got str: load a saved one by .*from_pretrained"):
        mx.truncate("saved", 1)


@pytest.mark.parametrize("head", ["linear+cascade", "linear+mix"])
def test_heads_that_read_earlier_ones_cant_stand_alone(head):
    model = chain(head=head).eval()
    with pytest.raises(ValueError, match="reads what earlier heads left"):
        mx.truncate(model, 2)
    x = torch.randn(3, 6)
    wanted_BC = model.predict(mx.FixedExit(0), x).logits_BC
    torch.testing.assert_close(mx.truncate(model, 0)(x), wanted_BC)


def test_a_decoder_without_a_padding_token_reads_rows_one_at_a_time():
    config = GPT2Config(**{**TEXT, "pad_token_id": None, "eos_token_id": 1, "bos_token_id": 1})
    model = without_biases(with_exits(GPT2Model(config)))
    static = mx.truncate(model, 1)
    assert static.config.pad_token_id is None
    row = {"input_ids": torch.randint(5, 60, (1, 7))}
    wanted_BC = model.predict(mx.FixedExit(1), **row).logits_BC
    torch.testing.assert_close(logits(static, row), wanted_BC)
