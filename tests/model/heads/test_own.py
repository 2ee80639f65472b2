"""The network's own head is the last exit: it answers as the network, and is saved with it."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_stages import TEXT, without
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    GPT2Config,
)

import multiexit as mx
from multiexit.backbones import NetworkHead
from multiexit.model import heads
from multiexit.recipes import static

NAMES = ["bert", "albert", "albert-2-groups", "roberta", "electra", "electra-projected"]
NAMES += ["distilbert"]


def classifier_of(name: str, **options):
    torch.manual_seed(0)
    config = copy.deepcopy(TEXT[name])
    for key, value in {"num_labels": 3, **options}.items():
        setattr(config, key, value)
    return AutoModelForSequenceClassification.from_config(config).eval()


def logits_of(net, inputs):
    with torch.no_grad():
        return net(**inputs).logits


HEADS = [None, "linear", "own-pooler", "attention", "pooler+lte", "linear+cascade"]


@pytest.mark.parametrize("name", NAMES)
def test_the_last_exit_answers_as_the_task_model_to_the_last_bit(name, text, tmp_path):
    net, inputs = classifier_of(name), without(text(4), "token_type_ids")
    wanted = logits_of(net, inputs)
    for head in HEADS:
        model = mx.MultiExitModel(mx.wrap(net), 3, head=head, pool="mean").eval()
        with torch.no_grad():
            assert torch.equal(model(**inputs)[-1], wanted), head
            last = mx.FixedExit(model.num_exits - 1)
            assert torch.equal(model.predict(last, **inputs).logits_BC, wanted), head
        model.save_pretrained(tmp_path)
        again = mx.MultiExitModel.from_pretrained(tmp_path)
        with torch.no_grad():
            assert torch.equal(again(**inputs), model(**inputs)), head
        # Other exits on the loaded network: its own head is what was loaded, nothing fresh.
        fewer = mx.MultiExitModel(again.backbone, 3, exits=[1, 3], head="linear").eval()
        with torch.no_grad():
            assert torch.equal(fewer(**inputs)[-1], wanted), head


class _Mean(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(16, classes)

    def forward(self, feature, **_):
        return self.linear(feature.mean(1))


@pytest.mark.parametrize("name", ["roberta", "electra"])
@pytest.mark.parametrize("classes", [3, 5])
def test_a_head_that_the_user_put_there_is_the_last_exit(name, classes, text, tmp_path):
    net, inputs = classifier_of(name), without(text(4), "token_type_ids")
    net.classifier = _Mean(classes)
    net.eval()
    wrapped = mx.wrap(net)
    model = mx.MultiExitModel(wrapped, classes).eval()
    with torch.no_grad():
        assert torch.equal(model(**inputs)[-1], logits_of(net, inputs))
    assert not model.last_exit_is_new
    with pytest.warns(UserWarning, match="must pass backbone="):
        model.save_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path, backbone=wrapped)
    assert torch.equal(again.heads[-1].linear.linear.weight, net.classifier.linear.weight)


def test_a_head_of_the_library_s_class_with_a_forward_of_its_own(text):
    net, inputs = classifier_of("roberta"), without(text(4), "token_type_ids")

    class Other(type(net.classifier)):
        def forward(self, features, **_):
            return super().forward(features.relu())

    net.classifier.__class__ = Other
    model = mx.MultiExitModel(mx.wrap(net), 3).eval()
    with torch.no_grad():
        assert torch.equal(model(**inputs)[-1], logits_of(net, inputs))


def test_a_text_network_s_own_part_by_its_name(text):
    net, inputs = classifier_of("roberta"), without(text(4), "token_type_ids")
    model = mx.MultiExitModel(mx.wrap(net, classifier="classifier"), 3).eval()
    with torch.no_grad():
        assert torch.equal(model(**inputs)[-1], logits_of(net, inputs))
    with pytest.raises(ValueError, match="own forward isn't its layers and head"):
        mx.wrap(classifier_of("bert"), classifier="classifier")  # which reads the pooler's vector


PROBLEMS = {
    "multi_label_classification": "multi-label",
    "regression": "regression",
    "single_label_classification": "classification",
    None: "classification",
}


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2"])
@pytest.mark.parametrize("said", PROBLEMS)
def test_a_networks_own_problem_is_the_models(said, name, text, tmp_path):
    inputs = without(text(4), "token_type_ids")
    if name == "gpt2":  # recorded
        config = GPT2Config(vocab_size=60, n_embd=16, n_layer=3, n_head=2, pad_token_id=0)
        config.num_labels, config.problem_type = 3, said
        net = AutoModelForSequenceClassification.from_config(config).eval()
    else:
        net = classifier_of(name, problem_type=said)
    labels = {
        "multi-label": torch.randint(2, (4, 3)).float(),
        "regression": torch.randn(4, 3),
    }.get(PROBLEMS[said], torch.tensor([0, 2, 1, 1]))
    model = mx.MultiExitModel(mx.wrap(net), 3).eval()
    assert model.problem == PROBLEMS[said]
    with torch.no_grad():
        logits_MBC = model(**inputs)
        wanted = copy.deepcopy(net)(**inputs, labels=labels)  # which writes a problem_type down
    torch.testing.assert_close(logits_MBC[-1], wanted.logits)
    loss = mx.loss_matrix(logits_MBC, labels, criterion=mx.Criterion(model.problem))[-1, -1]
    torch.testing.assert_close(loss, wanted.loss)  # as the library trains it
    model.save_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path)
    assert again.problem == model.problem
    with torch.no_grad():
        assert torch.equal(again(**inputs), logits_MBC)
    static = mx.truncate(model, model.num_exits - 1)
    assert type(static) is type(net)
    assert static.config.problem_type == (said or "single_label_classification")


@pytest.mark.parametrize(
    ("said", "outputs", "asked", "kept"),
    [
        ("multi_label_classification", 3, "classification", False),
        ("single_label_classification", 3, "multi-label", False),
        ("regression", 3, "regression", True),
        (None, 3, "multi-label", True),  # trained by a loss that its configuration doesn't tell
        (None, 1, None, True),
        (None, 1, "multi-label", True),
        ("single_label_classification", 1, None, True),
        ("multi_label_classification", 1, None, True),
        (None, 3, "token-classification", False),
    ],
)
def test_a_head_of_another_problem_is_not_kept(said, outputs, asked, kept):
    net = classifier_of("bert", problem_type=said, num_labels=outputs)
    model = mx.MultiExitModel(mx.wrap(net), outputs, problem=asked)
    assert isinstance(model.heads[-1], heads.OwnHead) == kept
    assert model.last_exit_is_new != kept
    one = "multi-label" if said == "multi_label_classification" else "regression"
    assert model.problem == (asked or one)


def _resized(net):
    net.resize_token_embeddings(70, mean_resizing=False)


def _truncated(net):
    base = net.base_model
    trunk = base.transformer if hasattr(base, "transformer") else base.encoder
    trunk.layer = trunk.layer[:2]
    net.config.num_hidden_layers = 2


@pytest.mark.parametrize("change", [_resized, _truncated])
@pytest.mark.parametrize("name", ["bert", "roberta", "electra-projected", "distilbert"])
def test_changed_networks_and_their_folders_answer_as_before(name, change, text, tmp_path):
    net, inputs = classifier_of(name), without(text(4), "token_type_ids")
    change(net)
    net.save_pretrained(tmp_path)
    wanted = logits_of(net, inputs)
    for given in (net, str(tmp_path)):
        model = mx.MultiExitModel(mx.wrap(given), 3).eval()
        model.save_pretrained(tmp_path / "model")
        again = mx.MultiExitModel.from_pretrained(tmp_path / "model")
        with torch.no_grad():
            assert torch.equal(model(**inputs)[-1], wanted)
            assert torch.equal(again(**inputs)[-1], wanted)


def test_layers_that_a_folder_lacks_are_refused(tmp_path):
    net = classifier_of("bert")
    net.bert.encoder.layer = net.bert.encoder.layer[:2]  # and its configuration isn't told
    net.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lack 32 tensors of the encoder.*random"):
        mx.wrap(str(tmp_path))


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_folder_without_its_classifier_s_weights_says_so(name, tmp_path):
    classifier_of(name).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in weights.items() if not key.startswith("classifier")}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.warns(UserWarning, match=r"weights lack .*classifier.*starts anew"):
        backbone = mx.wrap(str(tmp_path))
    assert mx.MultiExitModel(backbone, 3).last_exit_is_new


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_precision_that_is_asked_for_is_honoured(key, tmp_path):
    classifier_of("bert").save_pretrained(tmp_path)
    made = mx.wrap(str(tmp_path), **{key: torch.bfloat16})
    assert {p.dtype for p in made.parameters()} == {torch.bfloat16}


def test_an_encoder_with_a_forward_of_its_own_is_refused():
    class Twice(BertModel):
        def forward(self, *args, **inputs):
            made = super().forward(*args, **inputs)
            made.last_hidden_state = 2 * made.last_hidden_state
            return made

    with pytest.raises(ValueError, match="Twice's own forward isn't its layers and head"):
        mx.wrap(Twice(BertConfig(**TEXT["bert"].to_dict())))


def test_a_shared_pooler_is_shared_with_the_network_s_own_head():
    model = mx.MultiExitModel(mx.wrap(classifier_of("bert")), 3)
    one = model.heads[-1].read.layers.pooler
    assert all(head.pooler is one for head in model.heads[:-1])
    again = copy.deepcopy(model)
    assert again.heads[0].pooler is again.heads[-1].read.layers.pooler is not one
    own = mx.MultiExitModel(mx.wrap(classifier_of("bert")), 3, head="own-pooler")
    assert len({id(head.pooler) for head in own.heads[:-1]} | {id(one)}) == len(own.heads)


def test_the_own_head_has_the_network_s_dropout():
    torch.manual_seed(0)
    config = BertConfig(**{**TEXT["bert"].to_dict(), "classifier_dropout": 0.7, "num_labels": 3})
    net = AutoModelForSequenceClassification.from_config(config)
    model = mx.MultiExitModel(mx.wrap(net), 3)
    assert [m.p for m in model.heads[-1].modules() if isinstance(m, nn.Dropout)] == [0.7]


def test_a_folder_saved_before_own_heads_were_kept_still_loads(tmp_path, text):
    """Its description has no classifier, so its last exit is a head like the others."""
    backbone = mx.wrap(classifier_of("bert"))
    backbone.set_classifier(None)
    assert "classifier" not in backbone.spec
    model = mx.MultiExitModel(backbone, 3).eval()
    assert isinstance(model.heads[-1], heads.PoolerHead)
    model.save_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path)
    assert isinstance(again.heads[-1], heads.PoolerHead)
    inputs = text(3)
    with torch.no_grad():
        assert torch.equal(again(**inputs), model(**inputs))


def test_a_plain_classifier_passed_by_hand_is_saved(tmp_path):
    backbone = mx.wrap("cifar-resnet-20", classifier=nn.Linear(64, 5))
    model = mx.MultiExitModel(backbone, 5, exits=3, head="mixed-pool").eval()
    assert isinstance(model.heads[-1], heads.OwnHead)
    model.save_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_any_classifier_passed_by_hand_comes_back_with_the_backbone(tmp_path):
    torch.manual_seed(0)
    own = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(64, 5))

    def wrapped():
        return mx.wrap("cifar-resnet-20", classifier=copy.deepcopy(own))

    model = mx.MultiExitModel(wrapped(), 5, exits=3).eval()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the same backbone"):
        mx.MultiExitModel.from_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path, backbone=wrapped())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
        assert torch.equal(again(x)[-1], again.heads[-1].linear(again.backbone.features(x)[-1]))


def test_a_classifier_by_its_name(text):
    net = nn.Sequential()
    for name, part in {"a": nn.Linear(6, 6), "b": nn.Linear(6, 6), "fc": nn.Linear(6, 3)}.items():
        net.add_module(name, part)
    model = mx.MultiExitModel(mx.wrap(net, stages=["a", "b"], classifier="fc"), 3).eval()
    x = torch.randn(4, 6)
    assert torch.equal(model(x)[-1], net(x))
    assert model.heads[-1].linear is net.fc
    given = NetworkHead(net.fc, 3, nn.Tanh(), ["x", "y", "z"])
    model = mx.MultiExitModel(mx.wrap(net, stages=["a", "b"], classifier=given), 3).eval()
    assert torch.equal(model(x)[-1], net.fc(net.b(net.a(x)).tanh()))
    assert model.labels == ["x", "y", "z"]


@pytest.mark.parametrize("exits", ["all", [0, 2]])
def test_a_shorter_network_keeps_the_last_head_there_was(exits, text):
    net, inputs = classifier_of("bert"), text(3)
    model = mx.MultiExitModel(mx.wrap(net), 3, exits).eval()
    short = static.first_layers(model.backbone, 2)
    made = static.single_exit(model, short).eval()
    with torch.no_grad():
        feature = short.features(**inputs)[-1]
        assert torch.equal(made(**inputs)[0], model.heads[-1](feature))
    assert isinstance(made.heads[0], heads.OwnHead) == (exits == "all")
