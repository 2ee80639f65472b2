"""Every type of transformers' encoders in the table is staged as the library runs it."""

import copy
import re
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import multiexit as mx
from multiexit import testing
from multiexit.backbones.transformers.attention_heads import attentions, head_width
from multiexit.backbones.transformers.families import FAMILIES
from multiexit.recipes import static

TINY = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "embedding_size": 8,
    "initializer_range": 0.3,
    "num_labels": 3,
}


@pytest.fixture(params=FAMILIES)
def network(request):
    """A tiny task model of this type."""
    known = AutoConfig.for_model(request.param)
    sizes = {name: value for name, value in TINY.items() if hasattr(known, name)}
    config = AutoConfig.for_model(request.param, **sizes)
    return AutoModelForSequenceClassification.from_config(config).eval()


def test_stages_and_the_last_exit_say_what_the_library_says(network, text, tmp_path):
    inputs = {name: value for name, value in text(5).items() if name != "token_type_ids"}
    model = mx.MultiExitModel(mx.wrap(network), 3).eval()
    with torch.no_grad():
        # A copy: asked for its states, the library hangs hooks on its layers.
        said = copy.deepcopy(network)(**inputs, output_hidden_states=True)
        features, logits_MBC = model.backbone.features(**inputs), model(**inputs)
    assert len(features) == len(said.hidden_states) - 1 == 3
    for mine, theirs in zip(features, said.hidden_states[1:], strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(logits_MBC[-1], said.logits)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(mx.MultiExitModel.from_pretrained(tmp_path)(**inputs), logits_MBC)


def test_it_conforms_and_reads_the_segments_that_it_knows(network, text):
    backbone, inputs = mx.wrap(network), text(5)
    testing.check_backbone(backbone, inputs)
    known, most = backbone.limits()
    assert known["input_ids"] == 60
    assert most is not None
    assert most <= 40
    others = {**inputs, "token_type_ids": 0 * inputs["token_type_ids"]}
    same = torch.equal(backbone.features(**inputs)[0], backbone.features(**others)[0])
    assert same == (known.get("token_type_ids", 1) == 1)


def test_its_heads_and_its_layers_can_be_taken_out(network, text):
    backbone = mx.wrap(network)
    assert [attention.heads(head_width(backbone)) for attention in attentions(backbone)]
    inputs = text(4)
    short = static.keep_layers(backbone, [0, 2])
    assert short.num_stages == 2
    assert torch.equal(short.features(**inputs)[0], backbone.features(**inputs)[0])


ODD = {
    "two alike": ({"id2label": {0: "x", 1: "x"}}, None, "not a name of its own"),
    "an empty one": ({"id2label": {0: "", 1: "x"}}, None, "not a name of its own"),
    "from one": ({"id2label": {1: "x", 2: "y"}}, None, "not a name of its own"),
    "no such problem": ({"num_labels": 2}, "nonsense", "problem_type='nonsense', none of"),
    "one class": ({"num_labels": 1}, "single_label_classification", "one output, .* a number"),
    "plain": ({"id2label": {0: "x", 1: "y"}}, "single_label_classification", None),
    "numbered": ({"num_labels": 2}, None, None),
}


@pytest.mark.parametrize("case", ODD)
def test_what_a_configuration_says_of_classes_is_not_left_out_in_silence(case):
    classes, problem, message = ODD[case]
    sizes = {name: TINY[name] for name in TINY if name not in ("num_labels", "embedding_size")}
    config = AutoConfig.for_model("bert", **sizes, **classes)
    config.problem_type = problem
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        mx.MultiExitModel(mx.wrap(AutoModelForSequenceClassification.from_config(config)))
    said = [str(warning.message) for warning in told if "configuration" in str(warning.message)]
    assert bool(said) == (message is not None)
    assert message is None or re.search(message, said[0])
