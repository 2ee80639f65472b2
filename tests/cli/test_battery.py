"""Every option of every command at bad values: one short refusal each, before work, and no trace.

What counts as work raises here, so a value that is taken although it makes no sense is found too.
"""

import os
import shutil
import signal
import typing
from pathlib import Path

import pytest
import torch
import typer.main
from helpers import command

import multiexit as mx
from multiexit.cli import app
from multiexit.data import tasks
from multiexit.evaluation.results import results_json
from multiexit.files.json_files import write_json

COMMANDS = typer.main.get_command(app).commands
NEVER = {
    "int": ("x", "1.5", "nan", "-1", "0x10", "1e3"),
    "float": ("x", "nan", "inf", "-inf", "1e999", "-1", "1,5"),
    "text": (),
    "path": (),
}
"""Bad for every option of a type."""

NUMBERS = {
    "epochs": ("0",),
    "max_steps": ("0",),
    "batch_size": ("0",),
    "lr": ("0", "-0.1"),
    "omega_lr": ("0",),
    "warmup": ("1", "2"),
    "layer_decay": ("0", "1", "2"),
    "label_smoothing": ("1", "2"),
    "ema": ("0", "1", "2"),
    "mixup": ("0", "-1"),
    "cutmix": ("0", "-1"),
    "early_stopping": ("0", "3"),
    "workers": ("100000",),
    "accumulation": ("0",),
    "validation": ("1", "2"),
    "max_length": ("0",),
    "seed": (str(2**70),),
    "seeds": ("0", "100000000000"),
    "evaluate_every": ("0", "5"),
    "checkpoint_every": ("0",),
    "log_every": ("0",),
    "keep_checkpoints": ("0",),
    "trials": ("0",),
    "folds": ("0", "100000000"),
    "time_batch": ("0", "-2"),
    "speedup": ("0", "0.5"),
    "score": ("-5", "1.1"),
    "milliseconds": ("0",),
    "max_loss": ("100",),
    "risk": ("0", "1", "2"),
    "budget": ("0", "500"),
    "confidence": ("0", "1", "1.5"),
    "share": ("0", "1", "2"),
    "tokens": ("0", "5"),
    "repeats": ("0",),
    "classes": ("0", "100000000000"),
    "agreement": ("2",),
    "image_size": ("0", "64"),
}
WORDS = {
    "task": ("mnist", "digts", "cifar", "-"),
    "recipe": ("leebret", "LEEBERT", "../joint"),
    "option": ("cycle", "cycle=true", "cycle=", "=4", "cycel=4", "cycle=1.5", "cycle=nan"),
    "backbone": ("cifar-resnet-57", "cifar-resnet-", "timm:", "timm:resnte18", "torchvision:x"),
    "weights": ("none.safetensors", "/dev/null", "."),
    "normalisation": ("imagenet", "imagnet"),
    "exits": (",", "1,", "0", "-1", "99", "3,1", "1,1", "0.5,1.5", "nan", "inf", "every", "1;2"),
    "head": ("linaer", "pooler+", "attention", "linear+mixx", "+"),
    "pool": ("max", "frist"),
    "lr_schedule": ("cosin", "reduce_lr_on_plateau", "greedy", "cosine_with_min_lr"),
    "lr_schedule_option": ("power", "power=2", "=2", "num_cycles=x"),
    "class_weights": (",", "x", "1,-1", "1,nan", "1,2", "1;2"),  # of 2 classes, not of 10
    "sampling": ("balnced", "uniform"),
    "metric": ("f1", "acuracy", "r2", "micro_f1", "cosine"),
    "schedule": ("appendix-f", "strong", "fine-tune", "weak"),
    "mixed_precision": ("fp4", "b16"),
    "tracker": ("bogus",),
    "policy": (
        "luck=3",
        "patience=0",
        "patience=1.5",
        "fixed=99",
        "max-prob=0.9/0.8/0.7/0.6",
        "max-prob=",
        "max-prop=0.9",
        "entropy=x",
    ),
    "by": ("layer", "steps"),
    "loss": ("f1", "acuracy"),
    "batch_sizes": ("0", "8,4", "1,1", ",", "x", "1.5", "-1"),
    "space": (
        *("lr", "lr=", "lr=1..", "lr=..1", "lr=5..1", "lr=nan..1", "lr=0..1:log", "lr=a,b"),
        *("lx=1,2", "lr=0.1,0.1", "lr=1,,2", "option.cycle=true,2", "lr=1..2:cubic", "=1,2"),
    ),
    "sampler": ("gird", "bogus"),
    "storage": ("nonsense", "sqlite:////dev/null", "sqlite:////nowhere/at/all.db", "mysql:x://"),
    "data_dir": ("data",),  # the digits come with a library
    "against": ("nowhere",),
    "data": ("nowhere.csv", "/dev/null", "no/such/set"),  # and beside --task
    **dict.fromkeys(("text", "text_pair", "image", "label", "problem"), ("of", "own")),
    **dict.fromkeys(("validation_data", "test_data", "augment"), ("of", "own")),
}
FLAGS = ("download", "force", "pretrained", "skip_bad")  # of no use for the digits
BESIDE = {"confidence": ("--risk", "0.1"), "share": ("--speedup", "2")}


class Began(Exception):
    """Work began."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_glue):
    """An untrained model of the digits, and files of all kinds that are none."""
    place = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    model = mx.MultiExitModel(mx.cifar_resnet(20, in_channels=1, size=8), 10, exits=[0, 4, 8])
    model.preprocessing = tasks.load("digits").preprocessing
    model.policy = mx.Patience(2)
    model.save_pretrained(place / "model")
    (place / "glue").symlink_to(tiny_glue)
    (place / "empty").write_bytes(b"")
    (place / "binary").write_bytes(bytes(range(256)))
    (place / "text").write_text("no file of ours\n")
    (place / "table.csv").write_text("file,text\nnowhere.png,a\n")
    for name, content in (("empty.csv", b""), ("binary.jsonl", bytes(range(256)))):
        (place / name).write_bytes(content)
    (place / "folder.json").mkdir()
    (place / "folder").mkdir()
    (place / "results").mkdir()
    outputs = mx.Outputs(
        torch.eye(2).expand(2, 2, 2), torch.arange(2), mx.Cost((1, 2), (1, 2), (1, 2), 2)
    )
    write_json(
        place / "results" / "results.json",
        results_json(outputs, [mx.judge(outputs, mx.FixedExit(0))]),
    )
    (place / "loop").symlink_to(place / "loop")
    os.mkfifo(place / "fifo")
    for content in ("empty", "binary", "text", "fifo", "folder"):
        for name in ("multiexit.json", "seeds.json", "study.db"):
            inside = place / f"with-{content}"
            inside.mkdir(exist_ok=True)
            (inside / name).symlink_to(place / content)
    return place


NOT_THESE = (
    "missing",
    "empty",
    "binary",
    "text",
    "folder",
    "loop",
    "fifo",
    "text/below",
    "n" * 300,
)
NOR_THESE = ("with-empty", "with-binary", "with-text", "with-fifo", "with-folder")


def _text(place: Path) -> list[str]:
    glue = str(place / "glue")
    return ["first", "--task", "sst2", "--data-dir", glue, "--backbone", f"{glue}/bert"]


def usual(name: str, place: Path) -> list[str]:
    """A command that works."""
    model, images = str(place / "model"), ["--task", "digits", "--output", "out"]
    return {
        "demo": ["--output", "out"],
        "train": [*images, "--no-progress"],
        "baseline": [*_text(place), "--output", "out", "--no-progress"],
        "tune": [*images, "--space", "weight_decay=0.1,0.2"],
        "compare": ["one", "other"],
        "evaluate": [model, "--output", "out"],
        "sweep": [model, "--output", "out"],
        "calibrate": [model],
        "recommend": [model, "--speedup", "2"],
        "report": [str(place / "results")],
        "profile": [model],
        "serve": [model],
        "predict": [model, str(place / "empty")],
        "export": [model, "out"],
        "truncate": [model, "0", "--output", "out"],
        "recipes": [],
        "info": ["cifar-resnet-20"],
    }[name]


def _kind(made, name: str) -> str:
    """int, float, path or text, by the function's annotation."""
    annotation = str(typing.get_type_hints(made.callback)[name]).lower()
    return next((kind for kind in ("int", "float", "path") if kind in annotation), "text")


def _with(words: list[str], option: str, *values: str) -> list[str]:
    """The words, with the option's value in place of the usual one."""
    if option in words:
        at = words.index(option)
        words = words[:at] + words[at + 2 :]
    return [*words, option, *values]


def lines_of(place: Path):
    """All the command lines, each with why it is wrong."""
    for name, made in COMMANDS.items():
        base = [name, *usual(name, place)]
        yield [*base, "--bogus", "1"]
        yield [*base, "too", "many", "words"] if name not in ("predict",) else [*base[:1]]
        yield [name, *[""] * (len(base) - 1 or 1)]
        for p in made.params:
            option = p.opts[0]
            if not option.startswith("--"):
                continue
            if p.is_flag:
                yield [*base, option, option]
                yield [*base, f"{option}=1"]
                if p.name in FLAGS:
                    yield [*base, option]
                continue
            more = [w for w in BESIDE.get(p.name, ()) if name == "calibrate"]
            bad = [*NEVER[_kind(made, p.name)], *NUMBERS.get(p.name, ()), *WORDS.get(p.name, ())]
            if (name, p.name) in (
                ("export", "task"),
                ("export", "agreement"),
                ("export", "data_dir"),
            ):
                bad = bad[:3]  # that command's own tests
            if (name, p.name) == ("serve", "max_loss"):
                bad = [value for value in bad if value != "100"]  # there all may be lost
            for value in ("", " ", *bad):
                yield _with([*base, *more], option, value)
            yield _with([*base, *more], f"{option}=")
            yield [*base, option]
            if not p.multiple:
                value = "out" if option in base else "1"
                yield [*_with([*base, *more], option, value), option, value]
        if name in (
            "evaluate",
            "sweep",
            "calibrate",
            "recommend",
            "profile",
            "predict",
            "export",
            "serve",
        ):
            target = ["--speedup", "2"] if name == "calibrate" else []
            for wrong in (*NOT_THESE, *NOR_THESE):
                yield [name, str(place / wrong), *base[2:], *target]
            yield [name, "/dev/null", *base[2:], *target]
        if name in ("demo", "train", "baseline", "tune", "evaluate", "sweep"):
            for wrong in ("empty", "text/below", "fifo", "loop", "n" * 300):
                yield _with(base, "--output", str(place / wrong))
    yield from (
        ["compare", str(place / one), str(place / "folder")] for one in (*NOT_THESE, *NOR_THESE)
    )
    yield from (["predict", str(place / "model"), str(place / one)] for one in NOT_THESE)
    yield ["predict", str(place / "model"), "/dev/zero"]
    for one in ("empty.csv", "none.parquet", "binary.jsonl", "folder.json"):
        yield ["predict", str(place / "model"), str(place / one), "--image", "file"]
    for words in (["--output", "out.csv"], ["--skip-bad"], ["--image", "file", "--text", "text"]):
        yield ["predict", str(place / "model"), str(place / "table.csv"), *words]
        yield ["predict", str(place / "model"), *words]
    table = ["predict", str(place / "model"), str(place / "table.csv"), "--image", "file"]
    for wrong in ("out", "out.xlsx", "no/such/out.csv", str(place / "table.csv"), "/dev/null"):
        yield [*table, "--output", wrong]
    yield [*table, "--output", "out.csv"]  # whose image isn't there
    yield ["predict", str(place / "model")]
    report = ["report", str(place / "results")]
    yield from ([*report, str(place / one)] for one in (*NOT_THESE, *NOR_THESE))
    yield from ([*report, "--output", str(place / one)] for one in ("folder", "text/below"))
    tune, speedup = (
        ["tune", *usual("tune", place)],
        ["calibrate", str(place / "model"), "--speedup", "2"],
    )
    for one in NOR_THESE:
        if one not in ("with-empty", "with-folder"):
            yield [*tune, "--storage", f"sqlite:///{place / one / 'study.db'}"]
    yield [*tune, "--space", "option.cycle=2,4", "--option", "cycle=2"]
    yield [*tune, "--space", "epochs=1,2", "--max-steps", "3"]
    yield [*tune, "--space", "weight_decay=0.3,0.4"]
    yield [*tune, "--recipe", "joint", "--space", "omega_lr=0.1,0.2"]
    train = ["train", *usual("train", place)]
    yield [*train, "--epochs", "1", "--max-steps", "2"]
    yield [*train, "--option", "cycle=2", "--option", "cycle=2"]
    yield [*train, "--recipe", "joint", "--omega-lr", "0.1"]
    yield [*train, "--lr-schedule", "polynomial", "--lr-schedule-option", "power=x"]
    yield [*train, "--lr-schedule", "polynomial", "--lr-schedule-option", "powr=2"]
    yield [*train, "--seeds", "2", "--against", str(place / "folder")]
    yield [*train, "--against", str(place / "folder")]
    for wrong in NOT_THESE:
        yield [*train, "--config", str(place / wrong)]
    for option, value in (
        ("--normalisation", "cifar10"),
        ("--max-length", "64"),
        ("--seeds", "1001"),
    ):
        yield [*train, option, value]
    text = ["train", "--task", "mrpc", "--output", "out", "--data-dir", str(place / "folder")]
    for words in (["--download"], ["--normalisation", "imagenet"], ["--schedule", "strong"]):
        yield [*text, *words]
    for words in (["--weights", "x"], ["--channels-last"], ["--backbone", str(place / "folder")]):
        yield [*text, *words]
    for words in (["--loss", "accuracy"], ["--confidence", "0.9"], ["--batch-size", "4"]):
        yield [*speedup, *words]
    advice = ["recommend", str(place / "model"), "--speedup", "2"]
    yield [*advice, "--batch-size", "4"]
    yield from ([*advice[:2], "--max-loss", loss] for loss in ("100", "-1", "nan"))
    yield from ([*advice[:2], "--milliseconds", ms] for ms in ("0", "20"))
    for words in (["--risk", "0.1"], ["--budget", "2"], ["--score", "0.5"], ["--task", "mrpc"]):
        yield [*speedup, *words]
    yield ["calibrate", str(place / "model"), "--risk", "0.1", "--by", "macs"]
    yield ["calibrate", str(place / "model"), "--budget", "2", "--by", "macs"]
    yield from (["fly"], ["trian"], [""], ["train", "--task"])


def _answer(words: list[str], place: Path) -> str | None:
    """What is wrong with how a command line was answered."""

    def too_long(*_):
        raise TimeoutError("it waits")

    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(20)
    try:
        ended = command(*words)
    except BaseException as error:  # a traceback, for its user
        return f"{type(error).__name__}: {str(error)[:150]}"
    finally:
        signal.alarm(0)
    left = sorted(path.name for path in place.iterdir())
    for path in place.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if left:
        return f"it wrote {left}"
    if ended.code != 2:
        return f"exit code {ended.code}"
    lines = ended.err.strip().splitlines()
    if not 1 <= len(lines) <= 12 or "Traceback" in ended.err:
        return f"{len(lines)} lines"
    if (
        words and lines[0].startswith("multiexit: ") and len(lines) > 7
    ):  # GLUE has six places to look at
        return f"{len(lines)} lines for one error"
    return None


def test_bad_command_lines_are_refused_shortly_and_leave_nothing(folder, tmp_path, monkeypatch):
    def began(*args, **more):
        raise Began

    for work in (
        *("training.trainer.Trainer.fit", "training.search.queue._fill_queue"),
        *("cli.reporting.report_on", "cli.reporting.demo", "cli.calibrating.collect"),
        "evaluation.recommendation.recommend",
        *("serving.profiling.profile", "serving.onnx.export"),
    ):
        monkeypatch.setattr(f"multiexit.{work}", began)
    monkeypatch.setattr("multiexit_runner.server.listening.listen", began)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    tried, bad = 0, []
    for words in lines_of(folder):
        tried += 1
        if (wrong := _answer(words, tmp_path)) is not None:
            bad.append(f"{' '.join(words).replace(str(folder), 'F')}: {wrong}")
    print(f"{tried} command lines, {len(bad)} badly answered")
    assert not bad, "\n".join([f"{len(bad)} of {tried}:", *bad])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before
    assert tried > 700
