"""Networks with adapters of peft: wrapped, trained, saved, merged, exported."""

import json
from dataclasses import replace

import peft
import pytest
import timm
import torch
import transformers
from helpers import (
    CLASSES,
    Stopped,
    Text,
    Watched,
    assert_same,
    changed,
    config,
    fit,
    same_answers,
    tensors,
)
from torch import nn

import multiexit as mx
from multiexit import testing
from multiexit.backbones import adapters, rebuild
from multiexit.backbones.same import rebuild_difference
from multiexit.training.accelerator import accelerator
from multiexit.training.stepper import Stepper
from multiexit_runner import Runner

pytestmark = pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*")

TINY = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 60, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32}


def text(kind, **settings):
    make = transformers.AutoModelForSequenceClassification.from_config
    return make(
        getattr(transformers, f"{kind}Config")(
            **settings, num_labels=CLASSES, initializer_range=0.3
        )
    )


def vit():
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=24, num_heads=2, num_classes=CLASSES
    )


NETWORKS = {
    "bert": lambda: text("Bert", **TINY),
    "roberta": lambda: text("Roberta", **TINY | {"pad_token_id": 1}),
    "albert": lambda: text("Albert", **TINY, embedding_size=8),
    "gpt2": lambda: text("GPT2", **GPT2, pad_token_id=0),
    "llama": lambda: text("Llama", **TINY, num_key_value_heads=1),
    "vit": vit,
    "efficientnet": lambda: timm.create_model("test_efficientnet", num_classes=CLASSES),
}
CASES = {
    "bert": {"task_type": "SEQ_CLS", "lora_dropout": 0.1},
    "bert, adapters in its head": {"target_modules": ["query", "dense"]},
    "roberta": {"task_type": "SEQ_CLS", "target_modules": "all-linear", "use_rslora": True},
    "roberta, adapters in its head": {"target_modules": ["value", "dense", "out_proj"]},
    "albert": {"target_modules": ["query"], "use_dora": True},
    "gpt2": {"task_type": "SEQ_CLS", "rank_pattern": {"h.0.attn.c_attn": 3}},
    "llama": {"task_type": "SEQ_CLS", "target_modules": "all-linear"},
    "vit": {"target_modules": ["qkv", "fc1"], "modules_to_save": ["head"]},
    "efficientnet": {"target_modules": ["conv_pw", "conv_pwl"]},
}


def adapted(network: nn.Module, **options) -> peft.PeftModel:
    """A PeftModel whose adapters do something, as after training."""
    return awake(peft.get_peft_model(network, peft.LoraConfig(r=2, lora_alpha=4, **options)))


def awake(module):
    with torch.no_grad():
        for name, p in module.eval().named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.2)
    return module


def inputs_of(backbone: mx.Backbone, rows=3) -> dict[str, torch.Tensor]:
    if "input_ids" not in backbone.example_inputs():
        return {"x": torch.randn(rows, *backbone.example_inputs()["x"].shape[1:])}
    ids_BT = torch.randint(2, 60, (rows, 9))
    valid_BT = torch.ones_like(ids_BT)
    ids_BT[1, 6:], valid_BT[1, 6:] = backbone.spec["config"]["pad_token_id"], 0
    return {"input_ids": ids_BT, "attention_mask": valid_BT}


def answer(network, inputs):
    found = network(*inputs.values()) if "x" in inputs else network(**inputs).logits
    return found.detach()


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    network = adapted(NETWORKS[request.param.partition(",")[0]](), **CASES[request.param])
    backbone = mx.wrap(network)
    return network, backbone, mx.MultiExitModel(backbone, CLASSES).eval()


def test_stages_run_with_the_adapters(case):
    network, backbone, model = case
    inputs = inputs_of(backbone)
    wanted = answer(network, inputs)
    torch.testing.assert_close(model(**inputs)[-1], wanted, rtol=1e-5, atol=1e-5)
    with network.disable_adapter():
        assert not torch.allclose(answer(network, inputs), wanted, atol=1e-4)


def test_adapters_and_heads_are_what_is_trained(case):
    network, backbone, model = case
    assert adapters.layers(backbone)
    assert all(("lora_" in name) == p.requires_grad for name, p in backbone.named_parameters())
    assert all(p.requires_grad and "lora_" not in n for n, p in model.heads.named_parameters())
    own = {id(p) for p in network.parameters()}
    assert all(id(p) in own for p in backbone.parameters())


def test_saved_with_its_adapters_and_loaded_to_train_on(case, tmp_path, recwarn):
    _, backbone, model = case
    inputs = inputs_of(backbone)
    model.save_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path)
    assert not [w for w in recwarn if "description" in str(w.message)]
    assert torch.equal(again(**inputs), model(**inputs))
    assert rebuild_difference(again.backbone, rebuild) == ""
    flags = [{n: p.requires_grad for n, p in m.named_parameters()} for m in (model, again)]
    assert flags[0] == flags[1]


def test_merged_is_a_plain_network_of_the_same_answers(case, tmp_path, recwarn):
    _, backbone, model = case
    inputs = inputs_of(backbone)
    wanted = model(**inputs)
    with pytest.warns(UserWarning, match=r"has adapters: call multiexit\.merge_adapters\(model\)"):
        mx.truncate(model, model.num_exits - 1)
    mx.merge_adapters(model)
    assert not any("lora" in name for name, _ in model.named_modules())
    scale = wanted.abs().max().item()
    torch.testing.assert_close(model(**inputs), wanted, rtol=0, atol=1e-5 * max(scale, 1))
    model.save_pretrained(tmp_path)
    assert "lora" not in json.loads((tmp_path / "multiexit.json").read_text())["backbone"]
    assert torch.equal(mx.MultiExitModel.from_pretrained(tmp_path)(**inputs), model(**inputs))


def test_battery():
    testing.check_backbone(mx.wrap(adapted(vit(), target_modules=["qkv"])))


def test_the_users_network_stays_as_it_was():
    network = adapted(NETWORKS["bert"](), target_modules=["query", "dense"])
    names, before = [n for n, _ in network.named_modules()], tensors(network)
    mx.wrap(network)
    assert [n for n, _ in network.named_modules()] == names
    assert_same(tensors(network), before)


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit", "cifar-resnet"])
def test_adapters_put_in_after_wrapping(name, tmp_path):
    backbone = mx.wrap(NETWORKS[name]()) if name in NETWORKS else mx.cifar_resnet(20)
    model = mx.MultiExitModel(backbone, CLASSES)
    targets = "all-linear" if name in NETWORKS else ["conv1", "conv2"]
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=targets), model.backbone)
    assert all(p.requires_grad for p in model.heads.parameters())
    awake(model).save_pretrained(tmp_path)
    inputs = inputs_of(backbone)
    assert torch.equal(mx.MultiExitModel.from_pretrained(tmp_path)(**inputs), model(**inputs))


def test_a_peft_model_of_a_backbone_is_that_backbone():
    backbone = mx.cifar_resnet(20)
    network = peft.get_peft_model(backbone, peft.LoraConfig(target_modules=["conv1"]))
    assert mx.wrap(network) is backbone


def test_a_chain_of_parts():
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    network = adapted(net, target_modules=["0", "1"], modules_to_save=["2"])
    model = mx.MultiExitModel(mx.wrap(network, stages=["0", "1"], classifier="2"), 3).eval()
    x = torch.randn(5, 4)
    torch.testing.assert_close(model(x)[-1], network(x))


def test_what_cannot_be_staged_or_saved():
    prompts = peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS")
    with pytest.raises(ValueError, match="PREFIX_TUNING, beside the network's layers"):
        mx.wrap(peft.get_peft_model(NETWORKS["bert"](), prompts))
    model = mx.MultiExitModel(mx.cifar_resnet(20), CLASSES)
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["linear"]), model)
    with pytest.raises(ValueError, match=r"heads\.0\.linear: put them into model\.backbone"):
        model.save_pretrained("nowhere")


def test_adapters_that_no_description_has(tmp_path):
    network = peft.get_peft_model(
        NETWORKS["bert"](), peft.IA3Config(target_modules=["key"], feedforward_modules=[])
    )
    model = mx.MultiExitModel(mx.wrap(network), CLASSES).eval()
    with pytest.warns(UserWarning, match="merge_adapters"):
        model.save_pretrained(tmp_path)


LORA = {"name": "default", "layers": {"stages.0.conv1": {"r": 2, "lora_alpha": 4}}}
LORA |= {"lora_dropout": 0.0, "use_rslora": False, "use_dora": False, "lora_bias": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": {}}, "lora.layers"),
        ({"layers": {"stages.9": {"r": 2, "lora_alpha": 4}}}, "no layer 'stages.9'"),
        ({"layers": {"stages.0.conv1": {"r": 0, "lora_alpha": 4}}}, "whole number from 1"),
        ({"name": "../x"}, "name of an adapter"),
        ({"loftq_config": {}}, "not known here"),
        ({"init_lora_weights": "eva"}, "not known here"),
    ],
)
def test_a_description_that_lies(change, message):
    spec = {**mx.cifar_resnet(20).spec, "lora": LORA}
    assert adapters.layers(rebuild(spec))
    with pytest.raises(ValueError, match=message):
        rebuild({**spec, "lora": {**LORA, **change}})


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_training_moves_adapters_and_heads_alone(name, recomputed):
    model = mx.MultiExitModel(mx.wrap(adapted(NETWORKS[name](), task_type="SEQ_CLS")), CLASSES)
    before = tensors(model)
    settings = config(max_steps=4, lr=0.01, checkpoint_gradients=recomputed)
    fit(model, "joint", settings, Text())
    moved = changed(before, tensors(model))
    named = model.named_parameters(remove_duplicate=False)
    assert moved == {name for name, p in named if p.requires_grad}
    assert any("lora_A" in n for n in moved)
    assert all("lora_" in n or n.startswith("heads.") for n in moved)


def test_no_optimiser_state_for_what_is_frozen():
    model = mx.MultiExitModel(mx.wrap(adapted(NETWORKS["bert"](), task_type="SEQ_CLS")), CLASSES)
    settings = config()
    (phase,) = mx.recipe("joint").phases
    stepper = Stepper(model, phase, settings, accelerator(settings))
    held = {id(p) for group in stepper.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_run_goes_on_and_another_rank_is_another_run(tmp_path):
    def model(rank=2):
        torch.manual_seed(0)
        backbone = mx.wrap(NETWORKS["bert"]())
        lora = peft.LoraConfig(r=rank, lora_alpha=4, target_modules=["query"])
        peft.inject_adapter_in_model(lora, backbone)
        return mx.MultiExitModel(backbone, CLASSES)

    whole, parts = model(), model()
    settings = config(epochs=2, checkpoint_every=2, output=tmp_path / "whole")
    fit(whole, "joint", settings, Text())
    settings = replace(settings, output=tmp_path / "parts", resume=True)
    stopped = Watched(Text(), stop=4)
    with pytest.raises(Stopped):
        fit(parts, "joint", settings, stopped)
    again = model()
    fit(again, "joint", settings, Text())
    assert_same(tensors(again), tensors(whole))
    run = json.loads((tmp_path / "parts" / "run.json").read_text())
    layers = run["backbone"]["lora"]["layers"]
    assert layers["layers.0.attention.self.query"] == {"r": 2, "lora_alpha": 4}
    with pytest.raises(ValueError, match="another run"):
        fit(model(rank=3), "joint", settings, Text())
    saved = mx.MultiExitModel.from_pretrained(tmp_path / "parts" / "model")
    assert_same(tensors(saved), tensors(whole))


def test_the_engine_answers_with_adapters():
    backbone = mx.wrap(adapted(NETWORKS["bert"](), task_type="SEQ_CLS"))
    model = mx.MultiExitModel(backbone, CLASSES).eval()
    inputs = inputs_of(model.backbone, rows=4)
    same_answers(
        mx.Engine(model, mx.MaxProb(0.55)).predict(**inputs),
        model.predict(mx.MaxProb(0.55), **inputs),
    )


def test_a_merged_model_is_exported(tmp_path):
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8))
    model = mx.MultiExitModel(mx.wrap(adapted(net, target_modules=["0", "1"])), CLASSES).eval()
    x, policy = torch.randn(5, 4), mx.MaxProb(0.5)
    wanted = model.predict(policy, x)
    mx.merge_adapters(model)
    mx.export(model, tmp_path / "onnx", policy)
    answer = Runner(tmp_path / "onnx").predict(x.numpy())
    same_answers(mx.Prediction(*map(torch.from_numpy, answer)), wanted)


def test_attention_heads_with_adapters_are_not_pruned():
    backbone = mx.wrap(NETWORKS["bert"]())
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["query"]), backbone)
    with pytest.raises(ValueError, match=r"merge_adapters\(backbone\)"):
        mx.static.keep_heads(backbone, [[0]] * 3)
