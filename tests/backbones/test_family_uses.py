"""Wrapped means trained, counted, compiled, cut and exported: a part is run, the rest looked up."""

import json
import math

import pytest
from helpers import ROOT, benchmark
from test_recorded import REFUSED
from test_vision_zoo import REFUSED as REFUSED_IMAGES
from vision_zoo import zoo
from zoo import ZOO

TABLES = ROOT / "docs" / "results"
ROWS = {
    table: {
        row["family"]: row
        for row in json.loads((TABLES / table / "zoo.json").read_text(encoding="utf-8"))["rows"]
    }
    for table in ("families", "vision")
}
ALL = {**ROWS["families"], **ROWS["vision"]}
VIEWS = {
    *("decoder/doge", "decoder/qwen3_5", "decoder/qwen3_5_text", "decoder/qwen3_next"),
    *("image/mobilevitv2", "timm/cpubone", "timm/nextvit"),
}
"""Whose views torch's compiler gets wrong without its last part, machine code."""
OVERFLOWS = "text/mobilebert"
"""Nothing in it is normalised, and the features of a tiny random one reach 3e9."""
LARGE = {
    *("timm/mobilenetv5", "timm/mvitv2", "timm/volo"),
    *("torchvision/maxvit", "torchvision/vision_transformer"),
}
"""Whose smallest network is too large to train by every recipe on a CPU."""
UNEXPORTED = 0.15
"""The largest share of networks, of those that were tried, that the export refuses."""


@pytest.fixture(scope="module")
def uses():
    return benchmark("family_uses.py")


@pytest.mark.parametrize(
    "key", ["decoder/gptj", "decoder/mixtral", "text/clip_text_model", "torchvision/squeezenet"]
)
def test_two_steps_of_leebert_and_the_macs_are_what_the_table_says(key, uses):
    row = uses["row_of"](key, ["MACs", "trained"])
    assert row == {name: ALL[key][name] for name in row}


def test_every_network_that_is_wrapped_is_counted_and_trained():
    assert ROWS["families"].keys() >= {key for key in ZOO if key not in REFUSED}
    assert ROWS["vision"].keys() >= zoo().keys() - REFUSED_IMAGES.keys()
    assert all(float(row["MACs"]) > 0 for row in ALL.values())
    assert {row["trained"] for row in ALL.values()} == {"0"}


def test_every_network_trains_by_every_recipe_that_its_widths_allow():
    assert {row["recipes"] for key, row in ALL.items() if key not in LARGE} <= {"26", "27", "29"}
    of_one_width = [row for row in ROWS["families"].values() if row["recipes"] == "29"]
    assert len(of_one_width) > 0.8 * len(ROWS["families"])


def test_two_processes_train_as_one_does():
    rows = [row for key, row in ALL.items() if key != OVERFLOWS]
    assert all(float(row["two processes"]) < 1e-3 for row in rows)


@pytest.mark.parametrize("name", ["compiled", "truncated"])
def test_compiled_and_cut_networks_answer_as_before(name):
    rows = [row for key, row in ALL.items() if name != "compiled" or key not in VIEWS]
    assert all(float(row[name]) < 1e-3 for row in rows)


@pytest.mark.parametrize("table", ROWS)
def test_nearly_all_are_exported_and_the_others_refused_in_a_sentence(table):
    cells = [row["exported"] for row in ROWS[table].values() if "exported" in row]
    assert len(cells) > 0.95 * len(ROWS[table])
    refused = [cell for cell in cells if not cell[0].isdigit()]
    assert len(refused) <= UNEXPORTED * len(cells)
    assert all(math.isfinite(float(cell)) for cell in cells if cell not in refused)
    for said in refused:
        parity = ("the exported graphs", "exit 0 gave NaN")
        assert said.startswith(("the segment of exit", *parity, "not done"))
