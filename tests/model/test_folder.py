"""A saved model comes back whole, or says what is wrong; a failed write harms nothing."""

import errno
import json
import os
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import Table, command, config
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from test_heads import OF_TEXT
from torch import nn
from torch.utils.data import TensorDataset
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    LlamaModel,
    RobertaConfig,
    ViTModel,
)

import multiexit as mx
from multiexit.files import weights, writing
from multiexit.model import folder, heads
from multiexit.training.records import checkpoint

VIT = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2}
SMALL = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32}  # fmt: skip
KINDS = {
    "bert": None,
    "albert": None,
    "roberta": lambda: mx.wrap(
        AutoModel.from_config(
            RobertaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2,
                          num_attention_heads=2, intermediate_size=32, type_vocab_size=2)
        )
    ),
    "distilbert": lambda: mx.wrap(
        AutoModel.from_config(DistilBertConfig(vocab_size=60, dim=16, n_layers=2, n_heads=2,
                                               hidden_dim=32))
    ),
    "cifar": lambda: mx.cifar_resnet(20, in_channels=3, size=32),
    "timm": lambda: mx.wrap("timm:vit_tiny_patch16_224", **VIT),
    "torchvision": lambda: mx.wrap("torchvision:resnet18", num_classes=3),
}  # fmt: skip


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize("kind", KINDS)
def test_every_backbone_comes_back_to_the_last_bit(kind, tmp_path, make_backbone, text):
    backbone = make_backbone(kind) if KINDS[kind] is None else KINDS[kind]()
    model = mx.MultiExitModel(backbone, 3, exits=2, labels=["no", "maybe", "yes"])
    model.policy = mx.PatientConfident(0.4, 2)
    model.preprocessing = {"mean": [0.1, 0.2], "max_length": 64, "name": "é"}
    model.save_pretrained(tmp_path / "a" / "b")
    torch.manual_seed(99)
    again = mx.MultiExitModel.from_pretrained(tmp_path / "a" / "b")
    assert not again.training
    assert same_tensors(model, again)
    inputs = text(4) if "bert" in kind else {"x": torch.randn(2, 3, 32, 32)}
    if kind == "distilbert":  # it knows no token types
        inputs.pop("token_type_ids")
    with torch.no_grad():
        assert torch.equal(again(**inputs), model.eval()(**inputs))
    assert (again.exits, again.labels) == (model.exits, ["no", "maybe", "yes"])
    assert again.policy == mx.PatientConfident(0.4, 2)
    assert again.preprocessing == model.preprocessing
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == [
        "model.safetensors",
        "multiexit.json",
    ]


@pytest.mark.parametrize("head", OF_TEXT)
def test_every_text_head_comes_back(head, tmp_path, make_backbone, text):
    model = mx.MultiExitModel(make_backbone("bert"), 1, head=head, pool="mean", exits=[1, 4])
    model.save_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path)
    assert (again.head, again.pool, again.num_classes) == (head, "mean", 1)
    inputs = text(3)
    with torch.no_grad():
        assert torch.equal(again(**inputs), model.eval()(**inputs))
    assert same_tensors(model, again)


def test_mixed_pooling_comes_back(tmp_path, make_backbone):
    model = mx.MultiExitModel(make_backbone("resnet"), 4, head="mixed-pool", exits=4)
    model.save_pretrained(tmp_path)
    assert same_tensors(model, mx.MultiExitModel.from_pretrained(tmp_path))


def test_what_was_shared_is_stored_once_and_shared_again(tmp_path, make_backbone):
    model = mx.MultiExitModel(make_backbone("albert"), 3)
    model.save_pretrained(tmp_path)
    stored = sum(tensor.numel() for tensor in load_file(tmp_path / "model.safetensors").values())
    buffers = {id(b): b.numel() for b in model.buffers()}
    assert stored <= sum(p.numel() for p in model.parameters()) + sum(buffers.values())
    again = mx.MultiExitModel.from_pretrained(tmp_path)
    assert len({id(head.pooler) for head in again.heads}) == 1
    assert again.backbone.stage_module(0) is again.backbone.stage_module(1)
    count = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in again.parameters()) == count


def rope():
    sizes = {"num_classes": 3, "img_size": 28, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return mx.wrap(timm.create_model("eva02_tiny_patch14_224", **sizes))


def views():
    """Two weights that are halves of one memory, a strided buffer and an expanded one."""
    parts = [nn.Linear(8, 8), nn.Linear(8, 8)]
    for part, half in zip(parts, torch.randn(16, 8).split(8), strict=True):
        part.weight = nn.Parameter(half)
    parts[0].register_buffer("strided", torch.randn(4, 8)[:, ::2])
    parts[1].register_buffer("expanded", torch.randn(1, 8).expand(4, -1))
    return mx.wrap(nn.Sequential(*parts))


@pytest.mark.parametrize(("make", "shape"), [(rope, (3, 28, 28)), (views, (8,))])
@pytest.mark.filterwarnings("ignore:the backbone can't be made again")
def test_views_of_memory_are_trained_and_come_back(make, shape, tmp_path):
    model = mx.MultiExitModel(make(), 3)
    rows = TensorDataset(torch.randn(8, *shape), torch.randint(0, 3, (8,)))
    mx.Trainer(model, mx.recipe("joint"), config(output=tmp_path, epochs=2)).fit(rows, rows)
    torch.manual_seed(7)
    again = mx.MultiExitModel.from_pretrained(tmp_path / "model", backbone=make())
    assert same_tensors(model, again)


def test_a_model_without_policy_or_labels(tmp_path, make_backbone):
    mx.MultiExitModel(make_backbone("bert"), 2).save_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(str(tmp_path))
    assert (again.policy, again.labels, again.preprocessing) == (None, None, {})


def test_it_can_be_trained_on(tmp_path, make_backbone, text):
    mx.MultiExitModel(make_backbone("bert"), 3).save_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path).train()
    mx.loss_matrix(again(**text(3)), torch.tensor([0, 1, 2])).sum().backward()
    idle = [name for name, p in again.named_parameters() if p.grad is None]
    assert idle == []


def test_the_tokenizer_goes_with_it(tmp_path, make_backbone):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(tmp_path / "vocab.txt"))
    model = mx.MultiExitModel(make_backbone("bert"), 2)
    model.save_pretrained(tmp_path / "model", tokenizer)
    mx.MultiExitModel.from_pretrained(tmp_path / "model")
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert again("good film")["input_ids"] == tokenizer("good film")["input_ids"]
    before = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    class Full:
        def save_pretrained(self, folder):
            (Path(folder) / "tokenizer.json").write_text("half")
            raise OSError(28, "No space left on device")

    with torch.no_grad():
        next(model.parameters()).add_(1)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(tmp_path / "model", Full())
    assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


# One's own parts


@dataclass(frozen=True)
class Coin(mx.ExitPolicy):
    side: float

    def init(self, logits_BC):
        return {}

    def step(self, state, logits_BC):
        return state, logits_BC[:, 0] > self.side


def test_a_backbone_of_ones_own_is_asked_for(tmp_path, make_backbone):
    model = mx.MultiExitModel(make_backbone("mlp"), 3).eval()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"one of your own: give from_pretrained .* mx\.export"):
        mx.MultiExitModel.from_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path, backbone=make_backbone("mlp"))
    x = torch.randn(5, 6)
    assert torch.equal(again(x), model(x))


def test_a_head_of_ones_own_is_asked_for(tmp_path, make_backbone):
    model = mx.MultiExitModel(make_backbone("resnet"), 3, exits=9, head=_pooled)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"heads .* your own: give from_pretrained .* mx\.export"):
        mx.MultiExitModel.from_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path, head=_pooled)
    assert same_tensors(model, again)


def _pooled(shape: heads.Shape, K: int) -> nn.Module:
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * int(shape[0] or 0), K)
    )


def test_a_policy_of_ones_own_is_asked_for(tmp_path, make_backbone):
    model = mx.MultiExitModel(make_backbone("bert"), 3)
    model.policy = Coin(0.25)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"policy is a Coin.*policies=\[Coin\]"):
        mx.MultiExitModel.from_pretrained(tmp_path)
    assert mx.MultiExitModel.from_pretrained(tmp_path, policies=[Coin]).policy == Coin(0.25)


def test_an_edited_instance_of_timm_asks_for_its_backbone(tmp_path):
    def edited():
        instance = timm.create_model("vit_tiny_patch16_224", **VIT)
        instance.blocks[0].attn.scale = 0.5
        return mx.wrap(instance)

    model = mx.MultiExitModel(edited(), 3)
    with pytest.warns(UserWarning, match="must pass backbone="):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="give from_pretrained the same backbone"):
        mx.MultiExitModel.from_pretrained(tmp_path)
    assert same_tensors(model, mx.MultiExitModel.from_pretrained(tmp_path, backbone=edited()))


class Plain(mx.Backbone):
    """A backbone of the user's own."""

    activation = staticmethod(torch.relu)

    def __init__(self):
        super().__init__(feature_shapes=[(4,)])
        self.layer = nn.Linear(4, 4)

    def start(self, x):
        return {"x": x}

    def stage(self, carry, index):
        x = self.activation(self.layer(carry["x"]))
        return {"x": x}, x

    def stage_module(self, index):
        return self.layer

    def example_inputs(self, batch=1):
        return {"x": torch.zeros(batch, 4)}


class Bounded(Plain):
    """Another one with tensors of the same names and shapes."""

    activation = staticmethod(torch.tanh)


def test_a_backbone_of_another_class_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="must pass backbone="):
        mx.MultiExitModel(Plain(), 3).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mx.MultiExitModel.from_pretrained(tmp_path, backbone=Plain())
    with pytest.warns(UserWarning, match="was a Plain, and a Bounded is given") as said:
        mx.MultiExitModel.from_pretrained(tmp_path, backbone=Bounded())
    assert said[0].filename == __file__


# Damage


@pytest.fixture
def saved(tmp_path, make_backbone) -> Path:
    mx.MultiExitModel(make_backbone("bert"), 3).save_pretrained(tmp_path)
    return tmp_path


def edit(path: Path, **changes) -> None:
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, **changes}))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mx.MultiExitModel.from_pretrained(folder)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_weights_cut_short(saved, size):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    refused(saved, r"model.safetensors is damaged or cut short")


@pytest.mark.parametrize("size", [0, 10, -2])
def test_settings_cut_short(saved, size):
    path = saved / "multiexit.json"
    path.write_text(path.read_text()[:size])
    refused(saved, r"multiexit.json is damaged or cut short")


@pytest.mark.parametrize("format", [0, 2, None, "1"])
def test_another_version(saved, format):
    edit(saved / "multiexit.json", format=format)
    refused(saved, f"has format {format!r}; this version of multiexit reads 1")


@pytest.mark.parametrize("text", ["[]", "3", '{"format": 1}'])
def test_settings_of_something_else(saved, text):
    (saved / "multiexit.json").write_text(text)
    refused(saved, "multiexit.json")


def test_a_kind_of_backbone_that_is_not_known(saved):
    edit(saved / "multiexit.json", backbone={"kind": "mamba"})
    refused(saved, "no backbone of kind 'mamba'")


@pytest.mark.parametrize("name", ["model.safetensors", "multiexit.json"])
def test_a_missing_file(saved, name):
    (saved / name).unlink()
    refused(saved, name.split(".")[0])


def test_a_save_cut_off_between_its_files_is_refused(saved, make_backbone, monkeypatch):
    other = mx.MultiExitModel(make_backbone("bert"), 3, labels=["a", "b", "c"])
    other.policy = mx.Patience(2)
    renamed = []

    def killed(source, target, rename=os.replace):
        renamed.append(Path(target).name)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        other.save_pretrained(saved)
    monkeypatch.undo()
    assert renamed == ["model.safetensors", "multiexit.json"]
    refused(saved, r"model.safetensors and multiexit.json in .* aren't of one model: a save .* cut")
    other.save_pretrained(saved)
    again = mx.MultiExitModel.from_pretrained(saved)
    assert (again.labels, again.policy) == (other.labels, other.policy)
    again.policy = mx.Patience(3)
    folder.save_settings(saved, again.settings(again.backbone.spec))  # the weights stay
    assert mx.MultiExitModel.from_pretrained(saved).policy == mx.Patience(3)


def test_folders_from_before_their_files_knew_each_other_load(saved):
    tensors = load_file(saved / "model.safetensors")
    save_file(tensors, saved / "model.safetensors")
    settings = json.loads((saved / "multiexit.json").read_text())
    assert settings.pop("weights")
    (saved / "multiexit.json").write_text(json.dumps(settings))
    model = mx.MultiExitModel.from_pretrained(saved)
    folder.save_settings(saved, model.settings(model.backbone.spec))
    mx.MultiExitModel.from_pretrained(saved)


@pytest.mark.parametrize("place", ["multiexit.json", "multiexit.json/in"])
def test_a_file_where_the_folder_is_to_be_is_refused(place, saved):
    model = mx.MultiExitModel.from_pretrained(saved)
    with pytest.raises(ValueError, match=r"saved in a folder, and .*multiexit\.json is none"):
        model.save_pretrained(saved / place)


def test_a_missing_tensor(saved):
    path = saved / "model.safetensors"
    tensors = load_file(path)
    del tensors["heads.2.linear.weight"]
    save_file(tensors, path)
    refused(saved, r"heads\.2\.linear\.weight")


def test_a_tensor_too_many(saved):
    path = saved / "model.safetensors"
    save_file({**load_file(path), "heads.9.linear.weight": torch.zeros(1)}, path)
    refused(saved, r"heads\.9\.linear\.weight")


def test_a_tensor_of_another_shape(saved):
    path = saved / "model.safetensors"
    save_file({**load_file(path), "heads.2.linear.weight": torch.zeros(4, 16)}, path)
    refused(saved, r"(?s)heads\.2\.linear\.weight.*4, 16")


def test_no_such_folder(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(Path("no/such/folder"), "no model 'no/such/folder': it is no folder")


# A disk that fills up


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(tensors, path, metadata):
    Path(path).write_bytes(b"half")
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("broken", ["weights", "weights by their library", "settings", "rename"])
def test_a_full_disk_leaves_what_was_there(broken, saved, monkeypatch, make_backbone):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    torch.manual_seed(5)
    model = mx.MultiExitModel(make_backbone("bert"), 3, exits=[2])
    with monkeypatch.context() as patch:
        if broken == "weights":
            patch.setattr(weights, "save_file", full)
        elif broken == "weights by their library":
            patch.setattr(weights, "save_file", half_written)
        elif broken == "settings":
            patch.setattr(Path, "write_text", full)
        else:
            patch.setattr(writing.os, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            model.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
    model.save_pretrained(saved)
    assert mx.MultiExitModel.from_pretrained(saved).exits == (2,)


def test_what_json_cannot_hold_is_refused_before_anything_is_written(saved, make_backbone):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    model = mx.MultiExitModel(make_backbone("bert"), 3)
    model.preprocessing = {"sizes": {1, 2}}
    with pytest.raises(ValueError, match=r"can't be saved: \{1, 2\} is no plain data"):
        model.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_was_quantised_is_refused_before_anything_is_written(saved, make_backbone):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    model = mx.MultiExitModel(make_backbone("bert"), 3).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(ValueError, match=r"_packed_params.* save the model first and quantise it"):
        quantised.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_files_have_the_permissions_of_the_users_umask(mask, tmp_path, make_backbone):
    model = mx.MultiExitModel(make_backbone("mlp"), 3)
    before = os.umask(mask)
    try:
        model.save_pretrained(tmp_path / "model")
        checkpoint.save(tmp_path, "phase-0", {"x": torch.ones(2)})
        writing.write_tensors(tmp_path / "tokens.safetensors", {"x": torch.ones(2)})
    finally:
        os.umask(before)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 6
    assert {oct(path.stat().st_mode & 0o777) for path in written} == {oct(0o666 & ~mask)}


def test_a_full_disk_is_one_line_on_the_command_line(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "replace", full)
        ended = command("profile", saved, "--batch-sizes", "1", "--repeats", "1")
    assert ended.code == 2
    assert ended.err == "multiexit: [Errno 28] No space left on device\n"
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_really_is_full(tmp_path):
    """The operating system's own refusal, where this may be tried."""
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("may not mount")
    try:
        model = mx.MultiExitModel(mx.cifar_resnet(20), 2)  # 1.1 MB
        with pytest.raises(OSError, match="No space left"):
            model.save_pretrained(disk)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_cannot_be_described_is_saved_without(tmp_path):
    backbone = mx.cifar_resnet(20)
    backbone.spec = {**backbone.spec, "activation": nn.SiLU}
    model = mx.MultiExitModel(backbone, 2)
    with pytest.warns(UserWarning, match="can't be made again from its description"):
        model.save_pretrained(tmp_path)
    refused(tmp_path, "give from_pretrained the same backbone")
    again = mx.MultiExitModel.from_pretrained(tmp_path, backbone=mx.cifar_resnet(20))
    assert same_tensors(model, again)


@pytest.mark.parametrize("kind", ["float64", "bfloat16", "float16"])
def test_a_model_comes_back_in_the_precision_it_was_saved_in(kind, tmp_path, make_backbone, text):
    model = mx.MultiExitModel(make_backbone("bert"), 3).to(getattr(torch, kind)).eval()
    model.save_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {getattr(torch, kind)}
    assert same_tensors(model, again)
    inputs = text(4)
    with torch.no_grad():
        assert torch.equal(model(**inputs), again(**inputs))
    policy = mx.MaxProb(0.4)
    answers = [m.predict(policy, **inputs).logits_BC for m in (model, again)]
    assert torch.equal(*answers)


@pytest.mark.parametrize("kind", [BertModel, LlamaModel, ViTModel])
def test_checkpointed_gradients_are_no_part_of_the_network(kind, tmp_path):
    shape = kind.config_class(**SMALL, image_size=32)
    network = kind(shape)
    network.gradient_checkpointing_enable({"use_reentrant": False})
    model = mx.MultiExitModel(mx.wrap(network), 3)
    model.save_pretrained(tmp_path)
    assert same_tensors(model, mx.MultiExitModel.from_pretrained(tmp_path))


def test_a_run_says_once_that_its_backbone_can_t_be_described(tmp_path):
    torch.manual_seed(0)
    model = mx.MultiExitModel(mx.wrap(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))), 3)
    settings = config(epochs=3, output=tmp_path / "run")
    with pytest.warns(UserWarning, match="must pass backbone=") as said:
        trainer = mx.Trainer(model, mx.recipe("joint"), settings)
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit(Table(), Table(seed=1))
    assert (tmp_path / "run" / "model" / folder.SETTINGS).exists()


def test_numbers_of_numpy_are_saved_as_plain_ones(tmp_path, make_backbone):
    model = mx.MultiExitModel(make_backbone("mlp"), 2, labels=np.array([3, 7]))
    model.preprocessing = {"mean": np.float32(0.5), "sizes": torch.tensor([1, 2])}
    model.save_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path, backbone=make_backbone("mlp"))
    assert again.preprocessing == {"mean": 0.5, "sizes": [1, 2]}
