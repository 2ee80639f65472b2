"""Models that are exported once, for all that reads the graphs: tracing one takes seconds."""

from dataclasses import replace

import pytest
import torch
from answering import image_model, text_model, texts, tokenizer_in

import multiexit as mx
from multiexit.data.text import TextDataset
from multiexit.evaluation.targets import counts_of


@pytest.fixture(scope="session")
def exported_texts(once, onnx_operators, tmp_path_factory):
    """A model of texts with a calibration table, its tokenizer and policy, and its graphs' folder.

    The policy has a certificate whose counts are those of `texts(300)`.
    """
    tokenizer = tokenizer_in(tmp_path_factory.mktemp("texts"))
    model = text_model(tokenizer)
    data = TextDataset.from_texts(tokenizer, texts(300, 5), None, torch.arange(300) % 3)
    model.calibration = mx.calibration_table(mx.collect(model, data), mx.MaxProb)
    with torch.no_grad():
        logits_MBC = model(**tokenizer(texts(300), padding=True, return_tensors="pt"))
    outputs = mx.Outputs(logits_MBC, torch.arange(300) % 3, model.cost())
    certificate = mx.calibrate(outputs, mx.MaxProb, risk=0.9).certificate
    policy = mx.MaxProb(0.6)
    policy = policy.with_certificate(replace(certificate, counts=counts_of(outputs, policy)))
    folder = once("texts", lambda path: mx.export(model, path, policy, tokenizer=tokenizer))
    return model, tokenizer, policy, folder


@pytest.fixture(scope="session")
def exported_images(once, onnx_operators):
    """A model of images, and the folder of its graphs."""
    model = image_model()
    return model, once("images", lambda path: mx.export(model, path, mx.MaxProb(0.6)))
