"""Methods that put exits on a finished network: it stays as it is, or that it can't is said."""

import copy
import warnings

import pytest
import torch
from helpers import Text, command
from test_own import classifier_of, logits_of
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import multiexit as mx
from multiexit.backbones.class_order import order_classes

KEEP = ("deebert", "fastbert", "ztw", "shallow-deep-heads")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    net = classifier_of("roberta", id2label={0: "no", 1: "maybe", 2: "yes"})
    net.save_pretrained(folder)
    return net, folder


@pytest.mark.parametrize("name", KEEP)
def test_a_finished_network_and_its_last_exit_stay_to_the_last_bit(name, tuned, text):
    net, folder = tuned
    inputs = {key: value for key, value in text(6).items() if key != "token_type_ids"}
    recipe = mx.recipe(name, pretrained=True)
    model = mx.MultiExitModel(mx.wrap(str(folder)), 3, head=recipe.head)
    assert model.labels == ["no", "maybe", "yes"]
    before = copy.deepcopy(model.state_dict())
    mx.Trainer(model, recipe, mx.TrainConfig(max_steps=2, progress=False)).fit(Text(6))
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(**inputs)[-1], logits_of(net, inputs))
    last = f"heads.{model.num_exits - 1}."
    kept = ("backbone.", last)
    moved = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert moved
    assert not [name for name in moved if name.startswith(kept)]


@pytest.mark.parametrize("name", KEEP)
def test_a_new_last_exit_is_refused_and_a_trained_one_not_retrained_in_silence(name, tuned):
    _, folder = tuned
    recipes = {kept: mx.recipe(name, pretrained=kept) for kept in (True, False)}

    def check(model, pretrained):
        return mx.Trainer(model, recipes[pretrained])

    head = recipes[True].head
    for options in ({"exits": [0, 2]}, {"num_classes": 2}):
        model = mx.MultiExitModel(
            mx.wrap(str(folder)), **{"num_classes": 3, "head": head, **options}
        )
        with pytest.raises(ValueError, match="last exit is new, with random weights"):
            check(model, True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check(model, False)
    with torch.no_grad():
        for p in model.heads[-1].parameters():
            p.add_(0.1)  # as training does
    check(model, True)
    model = mx.MultiExitModel(mx.wrap(str(folder)), 3, head=head)
    check(model, True)
    with pytest.warns(UserWarning, match="trained already.*pretrained=True"):
        check(model, False)


def test_a_loaded_model_has_learnt(tmp_path):
    model = mx.MultiExitModel(mx.cifar_resnet(20), 4, exits=4)
    assert model.last_exit_is_new
    model.save_pretrained(tmp_path)
    assert not mx.MultiExitModel.from_pretrained(tmp_path).last_exit_is_new
    assert copy.deepcopy(model).last_exit_is_new
    assert model.to(torch.bfloat16).last_exit_is_new


def test_of_many_classes_with_other_names_the_first_are_said():
    labels = [f"own {number}" for number in range(20)]
    backbone = mx.wrap(classifier_of("roberta", id2label=dict(enumerate(labels))))
    own, others = ", ".join(labels[:8]), "t, u, v, w, x, y, z, 7"
    with pytest.warns(UserWarning, match=f"classes {own}, … and the task calls them {others}, …:"):
        order_classes(backbone, [*"tuvwxyz", *map(str, range(7, 20))])


def test_from_the_command_line_with_classes_in_another_order(tmp_path):
    """A fine-tuned folder keeps its answers; its classes come in the order of the task's."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "a", "good", "bad", "film", "very"]
    whole = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    whole.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special = {"bos": "<s>", "cls": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=whole, **{f"{key}_token": word for key, word in special.items()}
    )
    net = classifier_of("roberta", id2label={0: "POSITIVE", 1: "NEGATIVE"}, num_labels=2)
    for kept in (net, tokenizer):
        kept.save_pretrained(tmp_path / "net")
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    for split in ("train", "dev"):
        lines = [
            "sentence\tlabel",
            *(f"a {words[5 + row % 2]} film\t{row % 2}" for row in range(40)),
        ]
        (tmp_path / "glue" / "SST-2" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    ended = command(
        *("train", "--task", "sst2", "--backbone", tmp_path / "net", "--max-steps", 2),
        *("--recipe", "shallow-deep-heads", "--option", "pretrained=true"),
        *("--data-dir", tmp_path / "glue", "--output", tmp_path / "run"),
    )
    assert ended.code == 0, ended.err
    model = mx.MultiExitModel.from_pretrained(tmp_path / "run" / "model")
    assert model.labels == ["negative", "positive"]
    inputs = dict(tokenizer(["a very good film", "bad"], padding=True, return_tensors="pt"))
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        assert torch.equal(model(**inputs)[-1], logits_of(net, inputs)[:, [1, 0]])
