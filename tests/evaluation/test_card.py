"""The card of a model, from its settings and results."""

import json

import torch
import yaml

import multiexit as mx
from multiexit.evaluation import card, results
from multiexit.policies import Certificate


def test_a_card_says_what_the_model_is(tmp_path):
    model = mx.MultiExitModel(mx.cifar_resnet(20), 3, exits=[2, 8], labels=["a", "b", "c"])
    certificate = Certificate("disagreement", 0.05, 0.9, 100, 0.01, None)
    model.policy = mx.MaxProb(0.8).with_certificate(certificate)
    model.preprocessing = {"kind": "image"}
    model.save_pretrained(tmp_path)
    outputs = mx.Outputs(torch.randn(2, 30, 3), torch.arange(30) % 3, model.cost())
    rows = mx.sweep(outputs, [mx.MaxProb(0.8), mx.FixedExit(1)])
    data = json.loads(json.dumps(results.results_json(outputs, rows, title="x", recipe="joint")))
    text = card.write_card(
        tmp_path, data, name="mine", backbone="me/net", licence="mit"
    ).read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["base_model"] == "me/net"
    assert header["license"] == "mit"
    assert header["pipeline_tag"] == "image-classification"
    for part in (
        "2 exits, behind 3 and 9 of its layers",
        "classification, 3 outputs: a, b, c",
        "a mean loss of at most 0.05 (disagreement), with 90% confidence, on rows like the",
        "trained by: joint",
        f"{100 * rows[0].score:.2f}",
        "max-prob=0.8",
    ):
        assert part in text, part


def test_the_licence_is_that_of_the_backbones_own_card(tmp_path):
    (tmp_path / "README.md").write_text("---\nlanguage: en\nlicense: 'apache-2.0'\n---\n# x\n")
    assert card.licence_of(str(tmp_path)) == "apache-2.0"
    assert card.licence_of("albert-base-v2") is None


def test_a_card_follows_what_was_calibrated_and_keeps_the_rest(tmp_path):
    model = mx.MultiExitModel(mx.cifar_resnet(20), 2, exits=[2, 8], labels=["a, b", "c"])
    model.policy = mx.Patience(1)
    model.save_pretrained(tmp_path)
    card.write_card(tmp_path, backbone="me/net")
    model.policy = mx.MaxProb(0.8).with_certificate(
        Certificate("disagreement", 0.05, 0.9, 100, 0.01, None)
    )
    model.save_pretrained(tmp_path)
    card.renew_card(tmp_path)
    text = (tmp_path / card.CARD).read_text()
    assert text == card.write_card(tmp_path, backbone="me/net").read_text()
    assert (
        "stops by: max-prob=0.8\n- certificate: a mean loss of at most 0.05 (disagreement)" in text
    )
    assert "2 outputs: 'a, b', c" in text
    (tmp_path / card.CARD).write_text("a page of my own\n")
    card.renew_card(tmp_path)
    assert (tmp_path / card.CARD).read_text() == "a page of my own\n"
