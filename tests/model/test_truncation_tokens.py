"""Networks that answer each token, cut for good into transformers' own classes."""

import pytest
import torch
import transformers
from networks import TINY

import multiexit as mx
from multiexit.model.truncation import Truncated

SIZES = TINY | {"initializer_range": 0.5, "pad_token_id": 0, "num_labels": 5}


@pytest.mark.parametrize("kind", ["bert", "albert", "roberta", "deberta"])
@pytest.mark.parametrize("trained", [True, False], ids=["own-head", "encoder"])
def test_an_exit_is_the_librarys_own_class(kind, trained, tmp_path):
    config = transformers.AutoConfig.for_model(kind, **SIZES)
    auto = transformers.AutoModelForTokenClassification if trained else transformers.AutoModel
    torch.manual_seed(0)
    names = ["O", "B-A", "I-A", "B-B", "I-B"]
    model = mx.MultiExitModel(
        mx.wrap(auto.from_config(config).eval()),
        5,
        labels=names,
        problem="token-classification",
    ).eval()
    model.temperature_M[1] = 1.5
    mx.truncate(model, 1).save_pretrained(tmp_path)
    again = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert list(again.config.id2label.values()) == names
    ids, mask = torch.randint(3, 50, (3, 7)), torch.ones(3, 7, dtype=torch.long)
    mask[1, 4:] = 0
    with torch.no_grad():
        ours = model(input_ids=ids, attention_mask=mask)[1][mask.bool()]
        theirs = again(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_a_class_with_another_head_is_refused_with_both():
    config = transformers.ModernBertConfig(
        **TINY, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    )
    backbone = mx.wrap(transformers.ModernBertModel(config).eval())
    model = mx.MultiExitModel(backbone, 5, problem="token-classification").eval()
    with pytest.warns(
        UserWarning, match=r"the head of ModernBertForTokenClassification is .Linear"
    ):
        assert isinstance(mx.truncate(model, 0), Truncated)
