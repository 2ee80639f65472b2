"""Options from a file, and a run done again from what it wrote of itself."""

import json

import pytest
import typer.main
from helpers import assert_same, command
from safetensors.torch import load_file

from multiexit.cli import app
from multiexit.cli.run_files import expanded

PROGRAM = typer.main.get_command(app)
OPTIONS = [p for p in PROGRAM.commands["train"].params if p.name not in ("config_file", "help")]


def weights(run):
    (path,) = (run / "model").glob("*.safetensors")
    return load_file(path)


def read(tmp_path, text, *typed, name="run.yaml"):
    (tmp_path / name).write_text(text)
    return expanded(PROGRAM, ["train", "--config", str(tmp_path / name), *typed])


@pytest.mark.parametrize("spelled", ["-", "_"])
@pytest.mark.parametrize("option", OPTIONS, ids=lambda p: p.name)
def test_every_option_may_be_in_a_file_and_typed_ones_win(tmp_path, option, spelled):
    opt, name = option.opts[0], option.name.replace("_", spelled)
    if option.is_flag:
        assert read(tmp_path, f"{name}: true") == ["train", opt]
        assert read(tmp_path, f"{name}: false") == ["train", *option.secondary_opts[:1]]
        assert read(tmp_path, f"{name}: false", opt) == ["train", opt]
        return
    assert read(tmp_path, f"{name}: 2e-5") == ["train", f"{opt}=2e-5"]
    assert read(tmp_path, f'{{"{name}": "no"}}', name="x.json") == ["train", f"{opt}=no"]
    assert read(tmp_path, f"{name}: 3", opt, "4") == ["train", opt, "4"]
    assert read(tmp_path, f"{name}: 3", f"{opt}=4") == ["train", f"{opt}=4"]
    listed = [f"{opt}=1", f"{opt}=0.5"] if option.multiple else [f"{opt}=1,0.5"]
    assert read(tmp_path, f"{name}: [1, 0.5]") == ["train", *listed]


def test_tables_are_pairs(tmp_path):
    words = read(tmp_path, "option:\n  cycle: 4\n  temperature: 2.0\nexits: all")
    assert words == ["train", "--option=cycle=4", "--option=temperature=2.0", "--exits=all"]
    assert expanded(PROGRAM, ["train", "--seed", "1"]) == ["train", "--seed", "1"]
    assert expanded(PROGRAM, ["info", "--config", "x"]) == ["info", "--config", "x"]


def test_a_run_is_done_again_from_its_file(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "task: digits\nrecipe: leebert\noption: {temperature: 2}\nmax-steps: 4\nlr: 5e-2\n"
        f"exits: 4\nvalidation: 0.2\nmixed_precision: no\nseed: 3\noutput: {tmp_path / 'one'}\n"
        "evaluate_every: 2\noverwrite: true\n"
    )
    ended = command("train", "--config", tmp_path / "run.yaml", "--seed", 5)
    assert ended.code == 0, ended.err
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert (record["config"]["seed"], record["config"]["lr"]) == (5, 0.05)
    again = command("train", "--config", tmp_path / "one" / "run.json")
    assert (again.code, "holds a run" in again.err) == (2, True)
    again = command("train", "--config", tmp_path / "one/run.json", "--output", tmp_path / "two")
    assert again.code == 0, again.err
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "two"))
    two = json.loads((tmp_path / "two" / "run.json").read_text())
    assert {**two["config"], "output": 0} == {**record["config"], "output": 0, "overwrite": False}
    typed = command(
        *("train", "--task", "digits", "--option", "temperature=2", "--max-steps", 4),
        *("--lr", 5e-2, "--exits", 4, "--validation", 0.2, "--seed", 5, "--evaluate-every", 2),
        *("--output", tmp_path / "three"),
    )
    assert typed.code == 0, typed.err
    assert_same(weights(tmp_path / "one"), weights(tmp_path / "three"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3", "train has no option 'epoch': did you mean 'epochs'?"),
        ("learning-rate: 3", "train has no option 'learning-rate'"),
        ("config: other.yaml", "no option 'config'"),
        ("help: true", "no option 'help'"),
        ("epochs: 3\nepochs: 4", "'epochs' is there twice"),
        ("epochs: 1.5", "--epochs"),
        ("epochs:", "--epochs: an empty value"),
        ("epochs: {a: 1}", "can't read epochs"),
        ("exits: [[1], 2]", "can't read exits"),
        ("progress: maybe", "progress is true or false, got 'maybe'"),
        ("- epochs", "holds no options"),
        ("", "holds no options"),
        ("a: [", "is no YAML"),
        ("!!python/object/apply:os.system ['true']", "holds no options"),
        ("\x00", "is no YAML"),
        ("&a {&a a: *a}", ""),
        ("[" * 5000, "is no YAML"),
        ('{"versions": {}, "arguments": ["-c"]}', "not begun by `multiexit train`"),
        ('{"versions": {}}', "not begun by `multiexit train`"),
        ('{"versions": {}, "arguments": ["train", "--bogus", "1"]}', "No such option: --bogus"),
    ],
)
def test_files_that_hold_no_options_are_refused_before_any_work(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    name = "run.json" if text.startswith('{"') else "run.yaml"
    (tmp_path / name).write_text(text)
    ended = command("train", "--task", "digits", "--output", "out", "--config", name)
    assert (ended.code, said in ended.err) == (2, True), ended.err
    assert len(ended.err.strip().splitlines()) <= 6
    assert [path.name for path in tmp_path.iterdir()] == [name]
