"""Models that answer each token: their own head, padding anywhere, which tokens are asked for.

Letters: M exits, B batch rows, T tokens, C classes.
"""

import pytest
import torch
import transformers
from torch import nn

import multiexit as mx

SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "vocab_size": 50,
    "num_labels": 5,
}
DISTILBERT = {"dim": 16, "n_heads": 2, "hidden_dim": 16, "n_layers": 3, "vocab_size": 50}
NETWORKS = {
    "Albert": {**SIZES, "embedding_size": 8},
    "Bert": SIZES,
    "Deberta": SIZES,
    "DistilBert": {**DISTILBERT, "num_labels": 5},
    "ModernBert": {
        **SIZES,
        **{f"{name}_token_id": 1 for name in ("pad", "bos", "eos", "cls", "sep")},
    },
    "Roberta": SIZES,
}
POLICIES = [
    mx.MaxProb(0.3),
    mx.MaxProb((0.25, 0.4)),
    mx.Entropy(1.5),
    mx.Margin(0.05),
    mx.Patience(1),
    mx.PatientConfident(0.97, patience=2),
    mx.MostConfident(0.4),
    mx.ProductOfExperts(0.4),
    mx.Beem(0.05),
    mx.FixedExit(1),
]
NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def network(kind="Bert", **settings):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**NETWORKS[kind], **settings})
    model = getattr(transformers, f"{kind}ForTokenClassification")(config).eval()
    nn.init.normal_(model.classifier.weight)  # answers that differ
    return model


def tagger(kind="Bert", **settings):
    return mx.MultiExitModel(mx.wrap(network(kind, **settings)), num_classes=5).eval()


def rows():
    """Four rows: whole, padding last, padding first, padding on both sides."""
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(6, 50, (4, 9), generator=generator)
    mask_BT = torch.ones(4, 9, dtype=torch.long)
    mask_BT[1, 6:] = mask_BT[2, :4] = mask_BT[3, :2] = mask_BT[3, 7:] = 0
    return {"input_ids": ids_BT * mask_BT, "attention_mask": mask_BT}


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_last_exit_answers_each_real_token_as_the_library_does(kind, tmp_path):
    theirs, batch = network(kind), rows()
    model = mx.MultiExitModel(mx.wrap(theirs), num_classes=5).eval()
    assert model.problem == "token-classification"
    with torch.no_grad():
        logits_MBTC = model(**batch)
        for row, real in enumerate(batch["attention_mask"].bool()):
            alone = theirs(input_ids=batch["input_ids"][row, real][None]).logits[0]
            assert torch.allclose(logits_MBTC[-1, row, real], alone, atol=1e-5)
            assert (logits_MBTC[:, row, ~real] == 0).all()
        assert torch.equal(model.full(**batch), logits_MBTC[-1])
        model.save_pretrained(tmp_path)
        again = mx.MultiExitModel.from_pretrained(tmp_path)
        assert again.problem == model.problem
        assert torch.equal(again(**batch), logits_MBTC)


def some_asked(batch):
    generator = torch.Generator().manual_seed(2)
    return torch.randint(2, batch["input_ids"].shape, generator=generator)


def naive(policy, logits_MTC, asked_T):
    """Exit by exit, the row stops when each asked token alone would have stopped by now."""
    for m in range(len(logits_MTC) - 1):
        stops = []
        for token in asked_T.nonzero().flatten().tolist():
            state = policy.init(logits_MTC[0, token][None])
            for exit in range(m + 1):
                state, stop = policy.step(state, logits_MTC[exit, token][None])
            stops.append(bool(stop))
        if all(stops):
            return m
    return len(logits_MTC) - 1


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
@pytest.mark.parametrize("masked", [False, True])
def test_predict_is_simulate_is_one_row_at_a_time(policy, masked):
    model, batch = tagger(), rows()
    asked = {"answer_mask": some_asked(batch)} if masked else {}
    with torch.no_grad():
        logits_MBTC = model(**batch, **asked)
    real_BT = batch["attention_mask"].bool()
    asked_BT = real_BT & asked["answer_mask"].bool() if masked else real_BT
    got = model.predict(policy, **batch, **asked)
    exit_B, answer_BTC = mx.policies.answers(
        policy, logits_MBTC, problem=model.problem, asked_BT=asked_BT
    )
    assert torch.equal(got.exit_B, exit_B)
    assert torch.equal(got.logits_BC, answer_BTC.masked_fill(~real_BT[..., None], 0))
    engine = mx.Engine(model, policy)
    everything = {**batch, **asked}
    assert torch.equal(engine.predict(**everything).exit_B, exit_B)
    for row, real_T in enumerate(real_BT):
        alone = {name: value[row, real_T][None] for name, value in everything.items()}
        one = model.predict(policy, **alone)
        assert one.exit_B[0] == exit_B[row] == naive(policy, logits_MBTC[:, row], asked_BT[row])
        assert torch.allclose(one.logits_BC[0], answer_BTC[row, real_T], atol=1e-6)


@pytest.mark.parametrize("policy", [mx.MaxProb(0.3), mx.ProductOfExperts(0.35)], ids=repr)
def test_an_engine_answers_batches_of_other_lengths(policy):
    model = tagger()
    generator = torch.Generator().manual_seed(3)
    batches = []
    for rows_, tokens in ((3, 7), (1, 12), (5, 4), (2, 12)):
        mask_BT = torch.ones(rows_, tokens, dtype=torch.long)
        mask_BT[0, tokens // 2 :] = 0
        ids_BT = torch.randint(6, 50, (rows_, tokens), generator=generator)
        asked_BT = torch.randint(2, (rows_, tokens), generator=generator)
        batches.append({"input_ids": ids_BT, "attention_mask": mask_BT, "answer_mask": asked_BT})
    wanted = [model.predict(policy, **batch) for batch in batches]
    assert len({int(exit) for answer in wanted for exit in answer.exit_B}) > 1
    for batch, answer in zip(batches, wanted, strict=True):
        assert not answer.logits_BC[batch["attention_mask"] == 0].any()
    engine = mx.Engine(model, policy)
    for answers in (engine.stream(batches, batch_size=4), [engine.predict(**b) for b in batches]):
        for got, want in zip(answers, wanted, strict=True):
            assert torch.equal(got.exit_B, want.exit_B)
            assert torch.allclose(got.logits_BC, want.logits_BC, atol=1e-5)


def test_a_row_of_which_no_token_is_asked_for_leaves_at_once():
    model, batch = tagger(), rows()
    nobody = torch.zeros_like(batch["input_ids"])
    got = model.predict(mx.MaxProb(1.0), **batch, answer_mask=nobody)
    assert got.exit_B.tolist() == [0, 0, 0, 0]


def test_training_gives_the_same_logits_as_evaluation():
    model, batch = tagger(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), rows()
    for head in model.heads[:-1]:
        head.dropout.p = 0.0
    with torch.no_grad():
        wanted = model(**batch)
        assert torch.allclose(model.train()(**batch), wanted, atol=1e-6)


def test_what_does_not_fit_is_refused():
    backbone, batch = mx.wrap(network()), rows()
    for head in ("pooler", "own-pooler", "attention", "mixed-pool"):
        with pytest.raises(ValueError, match="makes one vector of a row"):
            mx.MultiExitModel(backbone, 5, head=head)
    for head in ("linear+mix", "+cascade", "linear+lte"):
        with pytest.raises(ValueError, match="heads chained by"):
            mx.MultiExitModel(backbone, 5, head=head)
    with pytest.raises(ValueError, match="answers each token that is read"):
        mx.MultiExitModel(mx.cifar_resnet(20), 5, problem="token-classification")
    model = tagger()
    with pytest.raises(ValueError, match=r"must be a tensor \[rows, tokens\], \(4, 9\)"):
        model(**batch, answer_mask=torch.ones(4, 8))
    with pytest.raises(ValueError, match="must be 1 where a token is asked for"):
        model(**batch, answer_mask=batch["attention_mask"] * 2)
    rows_alone = mx.MultiExitModel(backbone, 5, problem="classification").eval()
    with pytest.raises(ValueError, match="not answer_mask"):
        rows_alone(**batch, answer_mask=batch["attention_mask"])
    pooled = mx.MultiExitModel(backbone, 5, head=lambda shape, K: PooledHead(shape[-1], K)).eval()
    with pytest.raises(ValueError, match=r"it must give \(4, 9, 5\)"):
        pooled(**batch)


class PooledHead(nn.Module):
    def __init__(self, width, num_classes):
        super().__init__()
        self.linear = nn.Linear(width, num_classes)

    def forward(self, feature_BTH):
        return self.linear(feature_BTH[:, 0])
