"""What an encoder is given: left padding, masks, and inputs that don't fit."""

import copy

import pytest
import torch
from test_stages import encoder, without
from zoo import ZOO

import multiexit as mx
from multiexit.backbones.transformers.trials import most_tokens


def rows_of(inputs: dict, index: int) -> dict:
    """One row without its padding."""
    length = int(inputs["attention_mask"][index].sum())
    return {key: value[index : index + 1, :length] for key, value in inputs.items()}


def pad_token(name: str) -> int:
    return 1 if "roberta" in name else 0


def moved(inputs: dict, name: str, right: int = 0) -> dict:
    """The same rows with their padding first (but for `right` columns of it)."""
    T = inputs["attention_mask"].shape[1]
    made = {key: torch.zeros(len(value), T + right).long() for key, value in inputs.items()}
    made["input_ids"].fill_(pad_token(name))
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        for key in inputs:
            made[key][row, T - length : T] = inputs[key][row, :length]
    return made


@pytest.mark.parametrize("pool", ["first", "mean"])
@pytest.mark.parametrize("name", ["bert", "albert", "roberta", "electra", "distilbert"])
def test_a_row_answers_as_alone_wherever_its_padding_stands(name, pool, text):
    model = mx.MultiExitModel(mx.wrap(encoder(name)), 3, pool=pool, head="linear").eval()
    inputs = text(6)
    inputs["input_ids"][inputs["attention_mask"] == 0] = pad_token(name)
    left, both = moved(inputs, name), moved(inputs, name, right=2)
    engine = mx.Engine(model, mx.FixedExit(3))
    for row in range(6):
        with torch.no_grad():
            alone = model(**rows_of(inputs, row))[:, 0]
            for batch in (inputs, left, both):
                torch.testing.assert_close(model(**batch)[:, row], alone, atol=1e-5, rtol=1e-5)
        for batch in (left, both):
            answer = engine.predict(**batch).logits_BC[row]
            torch.testing.assert_close(answer, alone[3], atol=1e-5, rtol=1e-5)
    labelled = [{**left, "labels": torch.zeros(6).long()}, {**inputs, "labels": torch.ones(6)}]
    first, second = engine.stream(labelled, batch_size=4)
    torch.testing.assert_close(first.logits_BC, second.logits_BC, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_positions_that_were_given_go_with_their_tokens(name, text):
    """The library itself, told the right positions of rows that begin with padding."""
    model, inputs = encoder(name), text(6)
    inputs["input_ids"][inputs["attention_mask"] == 0] = pad_token(name)
    left = moved(inputs, name)
    mask = left["attention_mask"]
    first = pad_token(name) + 1 if name == "roberta" else 0
    left["position_ids"] = ((mask.cumsum(1) - 1).clamp(min=0) + first) * mask
    with torch.no_grad():
        theirs = model(**left).last_hidden_state
        ours = mx.wrap(model).features(**left)[-1]
        plain = mx.wrap(model).features(**without(left, "position_ids"))[-1]
    for row, length in enumerate(mask.sum(1).tolist()):
        torch.testing.assert_close(ours[row, :length], theirs[row, -length:], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(plain[row, :length], theirs[row, -length:], atol=1e-5, rtol=1e-5)


def test_right_padding_and_holes_are_the_library_s_to_the_last_bit(text):
    model, inputs = encoder("bert"), text(6)
    inputs["attention_mask"][:, 1] = 0  # a hole
    with torch.no_grad():
        wanted = model(**inputs).last_hidden_state
        assert torch.equal(mx.wrap(model).features(**inputs)[-1], wanted)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int32, torch.uint8])
def test_a_mask_of_any_type_is_the_same_mask(dtype, text):
    model, inputs = mx.wrap(encoder("bert")), text(4)
    other = {**inputs, "attention_mask": inputs["attention_mask"].to(dtype)}
    with torch.no_grad():
        assert torch.equal(model.features(**other)[-1], model.features(**inputs)[-1])


def mask_of(*shape: int, value: float = 1):
    return torch.full(shape, value)


IDS = torch.full((4, 6), 7)
WRONG = {
    "another shape": (
        {"attention_mask": mask_of(2, 6)},
        r"attention_mask has shape \(2, 6\).*4 rows",
    ),
    "too long": ({"attention_mask": mask_of(4, 7)}, r"attention_mask has shape \(4, 7\)"),
    "per query": ({"attention_mask": mask_of(4, 6, 6)}, r"attention_mask has shape \(4, 6, 6\)"),
    "per head": ({"attention_mask": mask_of(4, 1, 6, 6)}, r"must be \[rows, tokens\]"),
    "fractions": ({"attention_mask": mask_of(4, 6, value=0.5)}, r"1 where a token is real.*0\.5"),
    "added": ({"attention_mask": mask_of(4, 6, value=-10000.0)}, "got -10000"),
    "nothing real": (
        {"attention_mask": torch.tensor([[1] * 6, [0] * 6, [1] * 6, [1] * 6])},
        "row 1 is all padding",
    ),
    "no values": ({"attention_mask": torch.ones(4, 6, device="meta")}, "on the meta device"),
    "a list": ({"attention_mask": [[1] * 6] * 4}, "attention_mask must be a tensor, got list"),
    "beyond the table": ({"input_ids": IDS + 53}, r"in 0\.\.59, got 60.*resize_token"),
    "below it": ({"input_ids": IDS - 8}, r"input_ids must be in 0\.\.59, got -1"),
    "fractions of tokens": ({"input_ids": IDS.float()}, r"must be whole numbers.*float32"),
    "one row": ({"input_ids": IDS[0]}, r"input_ids has shape \(6,\).*input_ids\[None\]"),
    "no token": ({"input_ids": IDS[:, :0]}, "rows of 0 tokens"),
    "too many tokens": ({"input_ids": IDS.repeat(1, 9)}, "54 tokens, this network takes 40"),
    "segments": ({"token_type_ids": IDS}, r"token_type_ids must be in 0\.\.1, got 7"),
    "their shape": ({"token_type_ids": IDS[:2]}, r"token_type_ids has shape \(2, 6\)"),
    "positions": ({"position_ids": IDS + 33}, r"position_ids must be in 0\.\.39, got 40"),
    "both": ({"inputs_embeds": torch.zeros(4, 6, 16)}, "exactly one of"),
    "width": (
        {"input_ids": None, "inputs_embeds": torch.zeros(4, 6, 8)},
        r"fractions \[rows, tokens, 16\]",
    ),
    "labels": ({"labels": IDS[:, 0]}, "takes input_ids, .*not labels: labels are for training"),
}


@pytest.mark.parametrize("what", WRONG)
def test_inputs_that_do_not_fit_are_named_before_any_work(what):
    given, message = WRONG[what]
    model = mx.MultiExitModel(mx.wrap(encoder("bert")), 2).eval()
    inputs = {"input_ids": IDS, **given}
    inputs = {key: value for key, value in inputs.items() if value is not None}
    for run in (model, lambda **i: model.predict(mx.Patience(1), **i)):
        with pytest.raises(ValueError, match=message):
            run(**inputs)
    if what != "a list":  # which is no batch
        engine = mx.Engine(model, mx.Patience(1))
        with pytest.raises(ValueError, match=message):
            engine.predict(**inputs)
        if what not in ("labels", "nothing real"):  # streams may have labels, and sort rows
            with pytest.raises(ValueError, match=message):
                list(engine.stream([inputs]))


@pytest.mark.parametrize("key", ["text/mpnet", "text/deberta-v2", "decoder/gpt2"])
def test_positions_beyond_the_table_are_named_by_any_network(key):
    backbone = mx.wrap(ZOO[key].make())
    rows = backbone.limits()[0]["position_ids"]
    known = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    backbone.features(**known, position_ids=torch.full_like(IDS, rows - 1))
    with pytest.raises(ValueError, match=rf"position_ids must be in 0\.\.{rows - 1}, got {rows}"):
        backbone.features(**known, position_ids=torch.full_like(IDS, rows))


@pytest.mark.parametrize(
    "key", ["text/bert", "text/roberta", "text/mpnet", "decoder/gpt2", "decoder/llama"]
)
def test_how_many_tokens_a_network_takes_is_known_before_its_weights_are_read(key, tmp_path):
    network = encoder(key[5:]) if key in ("text/bert", "text/roberta") else ZOO[key].make()
    network.save_pretrained(tmp_path)
    most = mx.wrap(network).limits()[1]
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert most_tokens(str(tmp_path)) == most
    assert (most is None) == (key == "decoder/llama")


def test_masks_that_are_no_tensors_are_refused_before_any_work():
    network = ZOO["decoder/llama"].make()
    network.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match=r"flex_attention's mask .*attn_implementation='sdpa'"):
        mx.wrap(network)


def test_one_row_of_a_mask_is_for_all_rows():
    model = mx.MultiExitModel(mx.wrap(encoder("bert")), 2).eval()
    one = {"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}
    all_rows = {**one, "attention_mask": one["attention_mask"].expand(4, 6)}
    engine = mx.Engine(model, mx.Patience(1))
    wanted = model.predict(mx.Patience(1), **all_rows).logits_BC
    for answer in (
        model.predict(mx.Patience(1), **one),
        engine.predict(**one),
        *engine.stream([one]),
    ):
        torch.testing.assert_close(answer.logits_BC, wanted)


def test_training_and_streams_name_them_too():
    class Rows(torch.utils.data.Dataset):
        def __init__(self, ids):
            self.ids = ids

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"input_ids": self.ids, "labels": torch.tensor(index % 2)}

    model = mx.MultiExitModel(mx.wrap(encoder("bert")), 2)
    for ids, message in (
        (torch.ones(54).long(), "rows of 54 tokens, this network takes 40"),
        (torch.tensor([2, 60, 3]), r"in 0\.\.59, got 60"),
    ):
        config = mx.TrainConfig(max_steps=1, progress=False)
        with pytest.raises(ValueError, match=message):
            mx.Trainer(model, mx.recipes.joint(), config).fit(Rows(ids))
        with pytest.raises(ValueError, match=message):
            list(mx.Engine(copy.deepcopy(model).eval(), mx.Patience(1)).stream(Rows(ids)))


def test_an_empty_batch_has_an_empty_answer():
    model = mx.MultiExitModel(mx.wrap(encoder("bert")), 2).eval()
    empty = {"input_ids": IDS[:0], "attention_mask": IDS[:0]}
    assert model.predict(mx.Patience(1), **empty).logits_BC.shape == (0, 2)


def test_a_compiled_start_turns_rows_as_well(text):
    backbone = mx.wrap(encoder("bert"))
    left = moved(text(3), "bert")
    program = torch.export.export(
        _Start(backbone), (left["input_ids"], left["attention_mask"]), strict=True
    )
    with torch.no_grad():
        wanted = backbone.start(**without(left, "token_type_ids"))["x_BTH"]
        got = program.module()(left["input_ids"], left["attention_mask"])
    torch.testing.assert_close(got, wanted)


class _Start(torch.nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone.eval()

    def forward(self, ids, mask):
        return self.backbone.start(input_ids=ids, attention_mask=mask)["x_BTH"]
