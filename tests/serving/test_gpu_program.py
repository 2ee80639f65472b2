"""The program that a machine with a GPU runs, tried on a CPU; and what becomes of what fails."""

import json
import os
import subprocess
import sys
from unittest.mock import patch

import pytest
from helpers import ROOT, benchmark

PROGRAM = ROOT / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    return benchmark(PROGRAM.name)


def test_every_check_leaves_its_record_and_what_should_hold_holds(gpu, tmp_path, capsys):
    arguments = ["--device", "cpu", "--output", str(tmp_path)]
    subprocess.run([sys.executable, PROGRAM, *arguments], check=True, capture_output=True)
    for name in gpu["CHECKS"]:
        record = json.loads((tmp_path / f"gpu-{name}.json").read_text(encoding="utf-8"))
        assert record["about"]["command"].endswith(f"gpu.py --only {name} --device cpu")
        assert record["rows"]
        for row in record["rows"]:
            assert not row.get("failed"), (name, row)
            assert row.get("holds", "yes") == "yes", (name, row)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    gpu["main"](arguments)
    assert capsys.readouterr().out.split("\n")[:-1] == [f"{name}: there" for name in gpu["CHECKS"]]
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def fails():
    raise RuntimeError("no such\nkernel")


def dies():
    os._exit(3)


def test_what_fails_or_dies_is_a_row_and_the_others_go_on(gpu):
    rows = [({"batch": 1}, fails), ({"batch": 2}, lambda: {"ms": 5}), ({"batch": 3}, dies)]
    with patch.dict(gpu["CHECKS"], broken=lambda sizes: iter(rows)):
        assert gpu["rows_of"]("broken", gpu["TINY"]) == [
            {"batch": 1, "failed": "RuntimeError: no such kernel"},
            {"batch": 2, "ms": 5},
            {"failed": "the process ended with 3"},
        ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "no GPU is at hand"), (["--device", "cpu"], "a trial on a CPU is no result")],
)
def test_runs_that_would_give_no_result_are_refused(gpu, arguments, message, capsys):
    with patch("torch.cuda.is_available", lambda: False), pytest.raises(SystemExit):
        gpu["main"](arguments)
    assert message in capsys.readouterr().err
