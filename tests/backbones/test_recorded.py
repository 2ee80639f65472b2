"""Every network of the zoo is wrapped by its own forward, or refused for a reason known here."""

import warnings

import pytest
import torch
from transformers import T5Config, T5EncoderModel
from zoo import ONE_LENGTH, TOKENS, ZOO

import multiexit as mx
from multiexit.backbones.layers.recorded import RecordedBackbone
from multiexit.backbones.transformers import trials
from multiexit.backbones.transformers.task_heads import ENDINGS

ALONE = r"doesn't run on pixel_values \[2, 3, 224, 224\] alone .*input_shape="
BESIDE = "uses what its layers give beside the feature"
NO_CHAIN = "no list of layers that run one after another"

REFUSED = {
    "text/canine": "no table of embeddings by tokens",
    "text/funnel": NO_CHAIN,
    "text/perceiver": "main input",
    "text/reformer": NO_CHAIN,
    "image/focalnet": BESIDE,
    "image/glpn": NO_CHAIN,
    "image/perceiver": "main input",
    "image/pvt": NO_CHAIN,
    "image/pvt_v2": NO_CHAIN,
    "image/siglip2": ALONE,
    "image/siglip2_vision_model": "pixel_attention_mask",
    "image/swin2sr": BESIDE,
    "image/vit_mae": "isn't its layers one after another",
    "image/yolos": NO_CHAIN,
    "video/videoprism_vision_model": "on the rows beside it",
}
STARTS_ANEW = {
    "image/cvt",  # reads another tensor than the layers' feature
    "image/pp_lcnet",  # scales by its dropout
    "image/swiftformer",  # two heads, averaged
    "audio/sew",  # stretches its features
    "audio/sew-d",
    "video/vjepa2",  # pools by attention
}
ENDLESS = {"text/tapas"}  # places beyond its table are taken for the last one
UNDESCRIBED: set[str] = set()
SHARES = {"text": 0.9, "decoder": 1.0, "image": 0.8, "video": 0.8, "audio": 1.0}


def wrapped(key):
    entry = ZOO[key]
    network = entry.make()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backbone = mx.wrap(network, input_shape=(TOKENS,) if key in ONE_LENGTH else None)
        return network, backbone, entry


@pytest.mark.parametrize("key", REFUSED)
def test_these_are_refused_with_the_reason(key):
    if key not in ZOO:
        pytest.skip("not in this version of transformers")
    with pytest.raises(ValueError, match=REFUSED[key]):
        wrapped(key)


@pytest.mark.parametrize("key", sorted(ONE_LENGTH))
def test_what_reads_the_padding_asks_for_a_length(key):
    with pytest.raises(ValueError, match=r"on the padding beside it.* input_shape=\(T,\)"):
        mx.wrap(ZOO[key].make())


@pytest.mark.parametrize("group", SHARES)
def test_most_of_each_group_are_wrapped(group):
    keys = [key for key in ZOO if ZOO[key].group == group]
    assert sum(key not in REFUSED for key in keys) >= SHARES[group] * len(keys)


@pytest.mark.parametrize("key", [key for key in ZOO if key not in REFUSED])
def test_rows_answer_as_alone_and_the_last_exit_as_the_network(key, tmp_path):
    network, backbone, entry = wrapped(key)
    classifies = type(network).__name__.endswith(ENDINGS)
    assert (backbone.classifier is None) == (key in STARTS_ANEW or not classifies)
    assert (backbone.spec is None) == (key in UNDESCRIBED)
    inputs = entry.inputs(4, 0)
    model = mx.MultiExitModel(backbone, 3).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.heads[:-1].parameters():
            p.normal_()
    policy = mx.MaxProb(0.6)
    with torch.no_grad():
        together = model.predict(policy, **inputs)
        alone = [model.predict(policy, **row(entry, inputs, index)) for index in range(4)]
        logits_MBC = model(**inputs)
    for index, prediction in enumerate(alone):
        torch.testing.assert_close(
            together.logits_BC[index], prediction.logits_BC[0], rtol=1e-3, atol=1e-3
        )
    assert together.exit_B.tolist() == [int(prediction.exit_B) for prediction in alone]
    exit_B = mx.simulate(policy, logits_MBC)
    assert together.exit_B.tolist() == exit_B.tolist()
    if backbone.classifier is not None and isinstance(backbone, RecordedBackbone):
        with torch.no_grad():
            theirs_BC = network(**inputs).logits
        torch.testing.assert_close(logits_MBC[-1], theirs_BC, rtol=1e-3, atol=1e-4)
    if backbone.spec is not None:
        model.save_pretrained(tmp_path)
        loaded = mx.MultiExitModel.from_pretrained(tmp_path).eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(**inputs), logits_MBC)


PLACED = ["gpt2", "gptj", "llama", "mistral", "gemma", "qwen2", "phi"]


@pytest.mark.parametrize(
    "key",
    ["text/modernbert", "text/roberta-prelayernorm", *(f"decoder/{name}" for name in PLACED)],
)
def test_positions_leave_with_their_rows_and_no_mask_is_one_of_ones(key):
    """Each row has positions of its own, with gaps, going on and back."""
    network, backbone, entry = wrapped(key)
    model = mx.MultiExitModel(backbone, 3).eval()
    torch.manual_seed(0)
    for head in model.heads[:-1]:
        for p in head.parameters():
            torch.nn.init.normal_(p, std=0.5)
    ids_BT = entry.inputs(6, 0)["input_ids"].clamp(min=5)
    T = ids_BT.shape[1]
    places_BT = torch.stack([torch.randperm(2 * T)[:T] for _ in ids_BT])
    inputs = {"input_ids": ids_BT, "position_ids": places_BT}
    with torch.no_grad():
        logits_MBC = model(**inputs)
        ones = {**inputs, "attention_mask": torch.ones_like(ids_BT)}
        assert torch.equal(model(**ones), logits_MBC)
        torch.testing.assert_close(network(**ones).logits, logits_MBC[-1], rtol=1e-3, atol=1e-4)
        policy = mx.MaxProb(float(logits_MBC[0].softmax(-1).amax(-1).quantile(0.5)))
        answers_BC, exit_B = model.predict(policy, **inputs)
    assert len(set(exit_B.tolist())) > 1
    assert torch.equal(exit_B, mx.simulate(policy, logits_MBC))
    torch.testing.assert_close(answers_BC, logits_MBC[exit_B, torch.arange(6)])


def runs(network, tokens):
    ids = torch.full((1, tokens), 7)
    try:
        with torch.no_grad():
            network(input_ids=ids, attention_mask=torch.ones_like(ids))
    except (IndexError, RuntimeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("key", [k for k in ZOO if ZOO[k].group in ("text", "decoder")])
def test_texts_may_be_as_long_as_the_network_s_own_forward_takes(key):
    if key in REFUSED:
        pytest.skip("refused for another reason")
    network = ZOO[key].make()
    most = trials.trial(network).limits.tokens
    assert runs(network, most or 200)
    assert most is None or key in ENDLESS or not runs(network, most + 1)


def row(entry, inputs, index):
    """One row, without padding."""
    alone = {name: value[index : index + 1] for name, value in inputs.items()}
    if entry.group in ("text", "decoder"):
        real = alone["attention_mask"][0].bool()
        alone = {name: value[:, real] for name, value in alone.items()}
    return alone


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_an_exit_can_follow_each_layer_of_a_short_network_too(layers):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "vocab_size": 30}
    network = T5EncoderModel(T5Config(num_layers=layers, **sizes)).eval()
    assert mx.wrap(network).num_stages == layers
