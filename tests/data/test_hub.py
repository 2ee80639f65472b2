"""Sets of the library `datasets`, given as they are."""

import datasets
import pytest
import torch
from datasets import ClassLabel, DatasetDict, Features, Sequence, Value
from helpers import assert_same, config, fit, tensors
from torch.utils.data import DataLoader, Subset
from transformers import BertConfig, BertModel

import multiexit as mx
from multiexit.data import hub
from multiexit.data.batches import collate_of, labels_of

IDS = [[5, 6, 7], [8, 9, 10], [11, 12, 13], [14, 15, 16]] * 2


TINY = {
    "vocab_size": 60,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def bert() -> mx.MultiExitModel:
    torch.manual_seed(0)
    return mx.MultiExitModel(mx.wrap(BertModel(BertConfig(**TINY))), 2)


def rows(label="labels", **columns):
    return datasets.Dataset.from_dict({"input_ids": IDS, label: [0, 1] * 4, **columns})


def loss(train, **how) -> list[float]:
    model = bert().eval()
    settings = config(max_steps=2, batch_size=4, **how)
    return [row["loss"] for row in fit(model, "joint", settings, train).steps]


@pytest.mark.parametrize("format", [None, "torch", "numpy"])
@pytest.mark.parametrize("label", ["label", "labels"])
def test_a_set_is_read_as_it_is_in_any_format(format, label):
    plain = [
        {"input_ids": torch.tensor(ids), "labels": torch.tensor(n % 2)} for n, ids in enumerate(IDS)
    ]
    data = rows(label).with_format(format)
    for given in (data, Subset(data, range(8)), DataLoader(data, 4, shuffle=True)):
        assert loss(given) == pytest.approx(loss(DataLoader(plain, 4, shuffle=True)))
    wanted = mx.collect(bert(), DataLoader(plain, 4))
    for given in (data, DataLoader(data, 4), Subset(data, range(8))):
        found = mx.collect(bert(), given)
        assert torch.equal(found.labels_B, wanted.labels_B)
        torch.testing.assert_close(found.logits_MBC, wanted.logits_MBC)


def test_it_may_be_the_dev_set_and_a_stream_too():
    history = fit(bert(), "joint", config(epochs=1), rows(), rows("label"))
    assert len(history.epochs[0]["exits"]) == 2
    found = mx.collect(bert(), rows().to_iterable_dataset(), batch_size=4)
    torch.testing.assert_close(found.logits_MBC, mx.collect(bert(), rows()).logits_MBC)
    with pytest.raises(ValueError, match=r"rows can be counted.*IterableDataset"):
        fit(bert(), "joint", config(), rows().to_iterable_dataset())


def test_other_columns_are_left_out_and_named():
    data = rows(idx=list(range(8)), sentence=list("abcdefgh"))
    with pytest.warns(UserWarning, match="left out: idx, sentence; it takes input_ids"):
        assert loss(data) == loss(rows())
    with pytest.warns(UserWarning, match="left out: idx, sentence"):
        mx.collect(bert(), data)
    with pytest.warns(UserWarning, match="left out: idx, sentence"):
        list(mx.Engine(bert().eval(), mx.MaxProb(0.9)).stream(data, 4))


def test_a_set_without_tokens_is_refused():
    data = rows(sentence=list("abcdefgh")).remove_columns("input_ids")
    with pytest.raises(ValueError, match=r"takes input_ids, .* a batch has labels, sentence"):
        fit(bert(), "joint", config(), data)


def test_class_labels_are_their_numbers():
    names = ClassLabel(names=["n", "y"])
    features = Features({"input_ids": Sequence(Value("int32")), "label": names})
    data = rows("label").cast(features)
    assert labels_of(data).tolist() == [0, 1] * 4
    assert labels_of(Subset(data, [1, 2])).tolist() == [1, 0]
    assert loss(data) == loss(rows())


def test_class_labels_in_another_order_than_the_models_are_refused():
    model = bert()
    model.labels = ["y", "N"]
    features = Features(
        {"input_ids": Sequence(Value("int32")), "label": ClassLabel(names=["n", "y"])}
    )
    data, plain = rows("label").cast(features), rows()
    message = r"numbers its classes \['n', 'y'\].*with_mapping\(\{'n': 1, 'y': 0\}, 'label'\)"
    for train, dev in ((data, None), (plain, data), (Subset(data, [0, 1, 2, 3]), None)):
        with pytest.raises(ValueError, match=message):
            fit(model, "joint", config(), train, dev)
    with pytest.raises(ValueError, match=message):
        mx.collect(model, DataLoader(data, batch_size=2, collate_fn=collate_of(data)))
    fit(model, "joint", config(), data.align_labels_with_mapping({"n": 1, "y": 0}, "label"))
    model.labels = ["no", "yes"]  # other names say nothing
    fit(model, "joint", config(), data)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, None, 1] * 2, r"labels\[2\] is missing"),
        (["neg", "pos"] * 4, r"labels\[0\] is 'neg': give class numbers"),
        ([0, 1, -1, 1] * 2, r"label -1 in row 2"),
        ([[0, 1]] * 8, r"one number a row.*problem='multi-label'"),
    ],
)
def test_labels_that_are_none_are_named(labels, message):
    data = datasets.Dataset.from_dict({"input_ids": IDS, "labels": labels})
    for train, dev in ((data, None), (rows(), data)):
        with pytest.raises(ValueError, match=message):
            fit(bert(), "joint", config(), train, dev)


def test_several_sets_are_refused():
    both = DatasetDict(train=rows(), test=rows())
    for train, dev in ((both, None), (rows(), both)):
        with pytest.raises(ValueError, match=r"DatasetDict of \['train', 'test'\].*one of them"):
            fit(bert(), "joint", config(), train, dev)


def test_rows_of_unequal_length():
    """With a mask they are padded; without one they are refused."""
    ids = [[5, 6, 7], [8, 9], [10, 11, 12, 13], [14]] * 2
    data = datasets.Dataset.from_dict({"input_ids": ids, "labels": [0, 1] * 4})
    with pytest.raises(ValueError, match=r"'input_ids' have unequal shapes.*CollatorWithPadding"):
        fit(bert(), "joint", config(), data)
    masked = data.add_column("attention_mask", [[1] * len(row) for row in ids])
    batch = collate_of(masked)([masked[row] for row in range(4)])
    assert batch["input_ids"].tolist()[1] == [8, 9, 0, 0]
    assert batch["attention_mask"].sum(1).tolist() == [3, 2, 4, 1]
    alone = mx.collect(bert(), masked, batch_size=1)
    together = mx.collect(bert(), masked, batch_size=8)
    torch.testing.assert_close(alone.logits_MBC, together.logits_MBC, rtol=1e-5, atol=1e-5)


def test_a_transform_of_ones_own_is_kept():
    def longer(batch):
        return {**batch, "input_ids": [[5, *ids] for ids in batch["input_ids"]]}

    data = rows()
    data.set_transform(longer)
    batch = hub.collate([data[0], data[1]])
    assert batch["input_ids"].tolist() == [[5, 5, 6, 7], [5, 8, 9, 10]]
    one, two = bert(), bert()
    fit(one, "joint", config(epochs=1), data)
    fit(two, "joint", config(epochs=1), rows().map(longer, batched=True))
    assert_same(tensors(one), tensors(two))
