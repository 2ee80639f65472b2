"""What is served, of a model and of its export: one export for all tests."""

from dataclasses import replace

import pytest
import torch
from answering import text_model, texts, tokenizer_in

import multiexit as mx
from multiexit.evaluation.targets import counts_of
from multiexit.serving.stepping import of_model
from multiexit_runner.server.served import of_export


@pytest.fixture(scope="session")
def text_served(tmp_path_factory, onnx_operators):
    """The classifier, and what is served of the model and of its export.

    The policy has a certificate whose counts are those of `texts(300)`.
    """
    folder = tmp_path_factory.mktemp("served")
    tokenizer = tokenizer_in(folder)
    model = text_model(tokenizer)
    with torch.no_grad():
        logits_MBC = model(**tokenizer(texts(300), padding=True, return_tensors="pt"))
    outputs = mx.Outputs(logits_MBC, torch.arange(300) % 3, model.cost())
    certificate = mx.calibrate(outputs, mx.MaxProb, risk=0.9).certificate
    policy = mx.MaxProb(0.6)
    policy = policy.with_certificate(replace(certificate, counts=counts_of(outputs, policy)))
    classify = mx.Classifier(model, tokenizer, policy)
    mx.export(model, folder / "export", policy, tokenizer=tokenizer)
    exported = mx.Classifier.from_pretrained(folder / "export")
    return classify, {
        "model": lambda: of_model(classify, ["patience", "entropy"]),
        "export": lambda: of_export(exported),
    }
