"""Exported graphs answer each token as the model does.

Letters: B batch rows, T tokens, C classes.
"""

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import multiexit as mx
from multiexit_runner import Runner


def batch():
    """Rows with padding behind, before and on both sides; some tokens are asked for."""
    generator = torch.Generator().manual_seed(1)
    ids_BT, asked_BT = (
        torch.randint(least, most, (4, 9), generator=generator) for least, most in ((6, 50), (0, 2))
    )
    mask_BT = torch.ones(4, 9, dtype=torch.long)
    mask_BT[1, 6:] = mask_BT[2, :4] = mask_BT[3, :2] = mask_BT[3, 7:] = 0
    return {"input_ids": ids_BT * mask_BT, "attention_mask": mask_BT, "answer_mask": asked_BT}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.BertConfig(**sizes, num_hidden_layers=2, vocab_size=50, num_labels=5)
    network = transformers.BertForTokenClassification(config).eval()
    nn.init.normal_(network.classifier.weight)
    model = mx.MultiExitModel(mx.wrap(network), num_classes=5).eval()
    folder = tmp_path_factory.mktemp("export") / "graphs"
    parity = mx.export(model, folder, mx.MaxProb(0.3), rows=[batch()])
    assert parity.same_exit == parity.same_answer == parity.same_answer_alone == 1.0
    return model, Runner(folder)


def arrays(tensors):
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("threshold", [0.25, 0.3, 0.5])
def test_graphs_answer_tokens_in_their_places(exported, threshold):
    model, runner = exported
    runner.set(threshold=threshold)
    whole = batch()
    shorter = {name: tensor[:3, :7] for name, tensor in whole.items()}
    padded = {name: nn.functional.pad(tensor, (0, 3)) for name, tensor in whole.items()}
    batches = [whole, shorter, padded]
    wanted = [model.predict(mx.MaxProb(threshold), **each) for each in batches]
    single = [runner.predict(**arrays(each)) for each in batches]
    for answers in (single, runner.stream(map(arrays, batches), batch_size=2)):
        for got, want in zip(answers, wanted, strict=True):
            assert got.exit_B.tolist() == want.exit_B.tolist()
            assert got.logits_BC.shape == want.logits_BC.shape
            assert np.allclose(got.logits_BC, want.logits_BC.numpy(), atol=1e-4)
    with torch.no_grad():
        forward = runner.forward(**arrays(padded))
        assert np.allclose(forward, model(**padded).numpy(), atol=1e-4)
    nobody = {name: tensor[:0] for name, tensor in whole.items()}
    assert runner.predict(**arrays(nobody)).logits_BC.shape == (0, 9, 5)


def test_a_mask_of_other_numbers_is_refused(exported):
    _, runner = exported
    wrong = arrays(batch())
    wrong["answer_mask"] = wrong["answer_mask"] * 2
    with pytest.raises(ValueError, match=r"answer_mask must be in 0\.\.1"):
        runner.predict(**wrong)
