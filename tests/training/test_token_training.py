"""Token classification from words and tags to a calibrated model: a toy that early exits solve.

Letters: M exits, B batch rows, T tokens, C classes.
"""

import copy
from dataclasses import replace

import datasets
import pytest
import tokenizers
import torch
import transformers
from torch.nn import functional as F
from torch.utils.data import DataLoader

import multiexit as mx
from multiexit.data.batches import num_learned_tokens, with_shares
from multiexit.data.hub import collate
from multiexit.data.words import tokenise_words
from multiexit.evaluation import exit_losses
from multiexit.evaluation.recommendation import recommend
from multiexit.recipes.registry import RECIPES
from multiexit.training.accelerator import accelerator
from multiexit.training.stepper import Stepper

NAMES = ["O", "B-PER", "I-PER", "B-LOC"]
PEOPLE, PLACES, OTHERS = ("ada", "alan", "grace"), ("rome", "oslo"), ("sang", "in", "slept", "at")
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *PEOPLE, *PLACES, *OTHERS, "lo", "##ve", "##lace"]


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {piece: index for index, piece in enumerate(PIECES)}
    core = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special)


def sentences(count, seed):
    """A name is B-PER, "lovelace" behind it I-PER, and a person by itself; places are B-LOC."""
    generator = torch.Generator().manual_seed(seed)

    def draw(words):
        return words[int(torch.randint(len(words), (), generator=generator))]

    words, tags = [], []
    for _ in range(count):
        row = [(draw(PEOPLE), "B-PER")]
        if torch.rand((), generator=generator) < 0.5:
            row.append(("lovelace", "I-PER"))
        row += [(draw(OTHERS), "O"), (draw(OTHERS), "O")]
        if torch.rand((), generator=generator) < 0.5:
            row.append((draw(PLACES), "B-LOC"))
        words.append([word for word, _ in row])
        tags.append([tag for _, tag in row])
    return words, tags


def tagged(tokenizer, count, seed):
    return datasets.Dataset.from_dict(tokenise_words(tokenizer, *sentences(count, seed), NAMES))


def tagger(**settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(
        **sizes, num_hidden_layers=3, vocab_size=len(PIECES), **settings
    )
    backbone = mx.wrap(transformers.BertModel(config))
    problem = "token-classification"
    return mx.MultiExitModel(backbone, len(NAMES), labels=NAMES, problem=problem)


@pytest.fixture(scope="module")
def trained(tokenizer):
    config = mx.TrainConfig(
        epochs=6,
        batch_size=16,
        lr=5e-3,
        metric="entity_f1",
    )
    model = tagger()
    trainer = mx.Trainer(model, mx.recipe("leebert"), config)
    trainer.fit(tagged(tokenizer, 128, 0), tagged(tokenizer, 64, 1))
    return model.eval()


def test_the_first_token_of_each_word_answers(tokenizer):
    words, tags = [["ada", "lovelace", "sang"]], [["B-PER", "I-PER", "O"]]
    columns = tokenise_words(tokenizer, words, tags, NAMES)
    assert tokenizer.convert_ids_to_tokens(columns["input_ids"][0]) == [
        *("[CLS]", "ada", "lo", "##ve", "##lace", "sang", "[SEP]")
    ]
    assert columns["labels"] == [[-100, 1, 2, -100, -100, 0, -100]]
    assert columns["answer_mask"] == [[0, 1, 1, 0, 0, 1, 0]]
    cut = tokenise_words(tokenizer, words, [[1, 2, 0]], max_length=4)
    assert cut["labels"] == [[-100, 1, 2, -100]]
    assert "labels" not in tokenise_words(tokenizer, words)


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        (["ada sang"], None, r"words\[0\] is one string, 'ada sang'"),
        ([[]], None, "give one word at least"),
        ([["ada"]], [["B-PER", "O"]], "row 0 has 1 words"),
        ([["ada"]], [], "0 rows of tags for 1 rows of words"),
        ([["ada"]], [["B-DOG"]], "row 0 has the tag 'B-DOG'; names are O, B-PER"),
        ([["ada"]], [[4]], "row 0 has the tag 4"),
        ([["ada"]], [[-100]], "row 0 has the tag -100"),
    ],
)
def test_bad_words_and_tags_are_refused(tokenizer, words, tags, message):
    with pytest.raises(ValueError, match=message):
        tokenise_words(tokenizer, words, tags, NAMES)


def test_rows_are_padded_so_that_padding_is_not_learned(tokenizer):
    data = tagged(tokenizer, 8, 0)
    batch = collate([data[row] for row in range(8)])
    padding_BT = batch["attention_mask"] == 0
    assert padding_BT.any()
    assert (batch["labels"][padding_BT] == -100).all()
    assert (batch["answer_mask"][padding_BT] == 0).all()
    theirs = transformers.DataCollatorForTokenClassification(tokenizer)
    rows = data.remove_columns("answer_mask")
    wanted = theirs([rows[row] for row in range(8)])
    assert torch.equal(batch["labels"], wanted["labels"])
    loader = DataLoader(rows, batch_size=4, collate_fn=theirs)
    with pytest.warns(UserWarning, match="asked for have no label"):
        outputs = mx.collect(tagger(), loader)
    assert outputs.logits_MBC.shape[:2] == (3, 8)


def test_a_trained_tagger_leaves_early_and_is_judged_as_it_predicts(trained, tokenizer):
    data = tagged(tokenizer, 64, 2)
    outputs = mx.collect(trained, data, metric="entity_f1", batch_size=7)
    assert outputs.problem == "token-classification"
    assert mx.exit_scores(outputs)[-1]["f1"] > 0.95
    policy = mx.MaxProb(0.8)
    row = mx.judge(outputs, policy)
    assert row.speedup_layers > 1.1
    assert row.score > 0.9
    exit_B, answer_BTC = outputs.answers(policy)
    assert len(exit_B.unique()) > 1
    for index in range(len(data)):
        columns = {k: torch.tensor([v]) for k, v in data[index].items() if k != "labels"}
        got = trained.predict(policy, **columns)
        T = got.logits_BC.shape[1]
        assert got.exit_B[0] == exit_B[index]
        assert torch.allclose(got.logits_BC[0], answer_BTC[index, :T], atol=1e-5)


def test_labels_never_say_where_a_row_leaves(trained, tokenizer):
    data = tagged(tokenizer, 16, 3).remove_columns("answer_mask")
    batch = collate([data[row] for row in range(16)])
    with pytest.warns(UserWarning, match="asked for have no label"):
        outputs = mx.collect(trained, [batch])
    assert torch.equal(outputs.asked_BT, batch["attention_mask"].bool())
    labels = batch.pop("labels")
    got = trained.predict(mx.MaxProb(0.9), **batch)
    assert torch.equal(got.exit_B, outputs.answers(mx.MaxProb(0.9))[0])
    # The score is that of tokens with a label, [CLS] and [SEP] are none.
    right = (outputs.logits_MBC[-1].argmax(-1) == labels)[labels != -100].double().mean()
    assert mx.exit_scores(outputs)[-1]["accuracy"] == pytest.approx(float(right))


def unsure(outputs):
    """The same with noise at the early exits, padding and tokens that aren't asked for included."""
    logits_MBTC = outputs.logits_MBC.clone()
    logits_MBTC[:-1] += torch.randn(logits_MBTC[:-1].shape, generator=torch.manual_seed(0))
    return replace(outputs, logits_MBC=logits_MBTC)


def test_targets_go_by_rows_whose_asked_tokens_all_agree(trained, tokenizer):
    outputs = unsure(mx.collect(trained, tagged(tokenizer, 120, 8)))
    assert mx.judge(outputs, mx.calibrate(outputs, mx.MaxProb, speedup=1.2)).speedup_layers >= 1.2
    assert mx.judge(outputs, mx.calibrate(outputs, mx.Patience, score=0.9)).score >= 0.9
    policy = mx.calibrate(outputs, mx.MaxProb, risk=0.1)
    assert policy.certificate is not None
    full_BT, labels_BT = outputs.logits_MBC[-1].argmax(-1), outputs.labels_B
    for hasty in (policy, mx.FixedExit(0)):
        early_BT = outputs.answers(hasty)[1].argmax(-1)
        changed = lost = 0
        for row, asked_T in enumerate(outputs.asked_BT):
            early, full, right = (x[row, asked_T].tolist() for x in (early_BT, full_BT, labels_BT))
            changed += early != full
            lost += full == right and early != right
        assert exit_losses.realised(outputs, hasty, "disagreement") == pytest.approx(changed / 120)
        assert exit_losses.realised(outputs, hasty, "accuracy") == pytest.approx(lost / 120)
    assert changed > 0  # by leaving at the first exit


def test_a_budget_is_met_by_the_least_sure_token(trained, tokenizer):
    outputs = mx.collect(trained, tagged(tokenizer, 60, 9))
    policy = mx.budgeted(outputs, speedup=1.2)
    shares_M = mx.judge(outputs, policy).shares_M
    assert 0 < shares_M[0] < 1
    sure_B = torch.stack(
        [
            logits_TC[asked_T].softmax(-1).amax(-1).amin()
            for logits_TC, asked_T in zip(outputs.logits_MBC[0], outputs.asked_BT, strict=True)
        ]
    )
    assert shares_M[0] == pytest.approx(float((sure_B >= policy.threshold[0]).double().mean()))


def test_temperatures_fit_the_tokens_that_are_scored(trained, tokenizer):
    outputs = mx.collect(trained, tagged(tokenizer, 40, 10))
    model = copy.deepcopy(trained)
    mx.fit_temperatures(model, outputs)
    learned_BT = outputs.labels_B != -100
    flat = mx.Outputs(outputs.logits_MBC[:, learned_BT], outputs.labels_B[learned_BT], outputs.cost)
    rows = copy.deepcopy(trained)
    rows.problem = "classification"
    mx.fit_temperatures(rows, flat)
    assert torch.allclose(model.temperature_M, rows.temperature_M, rtol=1e-3)


def test_a_report_and_a_recommendation_read_tokens(trained, tokenizer):
    outputs = unsure(mx.collect(trained, tagged(tokenizer, 40, 11)))
    table = mx.report.exit_table(outputs)
    full_BT = outputs.logits_MBC[-1].argmax(-1)
    same = (outputs.logits_MBC[0].argmax(-1) == full_BT) | ~outputs.asked_BT
    assert f"{100 * float(same.all(1).double().mean()):.2f}" in table.splitlines()[2]
    assert recommend(outputs, max_loss=0.5).rows_judged <= 20


@pytest.mark.filterwarnings("ignore:exit 1 fits no class")
def test_a_tagger_is_cut_behind_an_exit(trained, tokenizer):
    data = tagged(tokenizer, 4, 13)
    batch = collate([data[row] for row in range(4)])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    real_BT = inputs["attention_mask"].bool()
    with torch.no_grad():
        logits_BTC = mx.truncate(trained, 1)(**inputs).logits
    wanted = trained.predict(mx.FixedExit(1), **inputs)
    torch.testing.assert_close(logits_BTC[real_BT], wanted.logits_BC[real_BT])


def test_a_smaller_and_a_saved_tagger_answer_the_same(trained, tokenizer, tmp_path):
    data = tagged(tokenizer, 8, 12)
    batch = collate([data[row] for row in range(8)])
    del batch["labels"]
    trained.policy = mx.MaxProb(0.8)
    wanted = trained.predict(trained.policy, **batch)
    small = mx.keep_exits(trained, [0, 2]).eval()
    two = small.predict(mx.FixedExit(1), **batch)
    assert torch.equal(two.logits_BC, trained.predict(mx.FixedExit(2), **batch).logits_BC)
    trained.save_pretrained(tmp_path)
    again = mx.MultiExitModel.from_pretrained(tmp_path)
    assert again.labels == NAMES
    got = again.predict(again.policy, **batch)
    assert torch.equal(got.logits_BC, wanted.logits_BC)
    assert torch.equal(got.exit_B, wanted.exit_B)
    latency = mx.profile(trained, batch_sizes=(1, 2), repeats=1)
    assert len(latency.stages_ms) == 3
    assert trained.cost().macs_M[0] < trained.cost().macs_M[-1]


def test_parts_of_outputs_keep_their_masks(trained, tokenizer):
    outputs = mx.collect(trained, tagged(tokenizer, 20, 4))
    some, others = outputs.split(0.5)
    assert len(some.asked_BT) == len(others.asked_BT) == 10
    policy = mx.MaxProb(0.8)
    whole = outputs.answers(policy)[0]
    parts = torch.cat([part.answers(policy)[0] for part in (some, others)])
    assert torch.equal(whole.sort().values, parts.sort().values)


def test_accumulated_batches_count_by_their_tokens(tokenizer):
    """The gradient of batches of unequal token counts is that of all rows in one batch."""
    data = tagged(tokenizer, 12, 5)
    rows = [data[row] for row in range(12)]
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    weights = []
    for sizes in ((12,), (9, 3)):
        model = tagger(**quiet)
        for head in model.heads:
            head.dropout.p = 0.0
        parts = torch.arange(12).split(list(sizes))
        batches = [collate([rows[int(row)] for row in part]) for part in parts]
        phase = mx.recipe("joint").phases[0]
        config = mx.TrainConfig(lr=1e-3, omega_lr=1e-3, clip=None, warmup=0.0, optimizer="sgd")
        stepper = Stepper(model, phase, config, accelerator(config))
        record = stepper.step(batches, lambda: None, 0, 10)
        weights.append((record.loss, torch.cat([p.flatten() for p in model.parameters()])))
    assert torch.allclose(weights[0][0], weights[1][0], atol=1e-6)
    assert torch.allclose(weights[0][1], weights[1][1], atol=1e-6)


def test_the_loss_is_that_of_torch_over_labelled_tokens(tokenizer):
    data = tagged(tokenizer, 6, 6)
    batch = collate([data[row] for row in range(6)])
    labels_BT = batch.pop("labels")
    model = tagger().eval()
    logits_MBTC = model(**batch)
    L_MM = mx.loss_matrix(logits_MBTC, labels_BT, criterion=mx.Criterion(model.problem))
    for m, logits_BTC in enumerate(logits_MBTC):
        wanted = F.cross_entropy(logits_BTC.flatten(0, 1), labels_BT.flatten())
        assert L_MM[m, m].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_batches_without_any_label_have_no_share():
    empty = {"labels": torch.full((2, 3), -100)}
    assert [share for _, share in with_shares([empty, empty], num_learned_tokens)] == [0.0, 0.0]


REFUSED = {"beem", "berxit", "consistentee", "cosee", "embedding", "l2w-den", "right-tool", "ztw"}


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_trains_tokens_or_is_refused_before_work(name, tokenizer):
    config = mx.TrainConfig(epochs=1, batch_size=8, progress=False)
    if name in REFUSED:
        with pytest.raises(ValueError, match="token-classification"):
            mx.Trainer(tagger(), mx.recipe(name), config)
        return
    model = tagger()
    before = [head.linear.weight.clone() for head in model.heads]
    data = tagged(tokenizer, 16, 7)
    mx.Trainer(model, mx.recipe(name), config).fit(data, data)
    assert all(
        not torch.equal(head.linear.weight, w) for head, w in zip(model.heads, before, strict=True)
    )
