"""What a command says to type next: lines that work as they are printed."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multiexit import problems
from multiexit.cli.row_options import ModelRows
from multiexit.cli.words import typed_command
from multiexit.evaluation.p_values import rows_needed
from multiexit.evaluation.recommendation import Recommendation
from multiexit.model.model import MultiExitModel
from multiexit.policies import ExitPolicy
from multiexit.policies.certificate import Certificate
from multiexit.policies.registry import policy_name
from multiexit_runner.choosing import bounds_speak_of


def after_training(run: Path, model: MultiExitModel, rows: int, data: Sequence[str] = ()) -> str:
    """What to do with a run.

    Args:
        run: its folder.
        model: that was trained in it.
        rows: of its development set, half of which calibrate.
        data: words that say where the rows are, where they had to be said.
    """
    steps = [_step(["report", run], "shows it as a page")]
    if problems.resolve(model.problem, model.num_classes) in ("classification", "multi-label"):
        speedup = ["calibrate", run, "--speedup", "1.5", *data]
        steps.append(
            _bounded(run, rows, data)
            or _step(speedup, "makes it stop early, at 1.5 times the speed")
        )
    return _line(*steps)


def after_recommending(run: Path, advice: Recommendation, rows: ModelRows, written: bool) -> str:
    """What to do with a recommended policy.

    Args:
        run: as typed.
        advice: with that policy.
        rows: as typed.
        written: whether it is stored in the model.
    """
    if not written and advice.breaks:
        bounded = None
        if advice.changed is not None:
            number = advice.rows_chosen + advice.rows_judged + advice.repeated
            bounded = _bounded(run, number, _words(rows))
        return _line(bounded or "the same command with more rows (`--data`)")
    if not written:
        return _line(f"`{typed_command()} --write` stores it in the model")
    policy = advice.row.policy
    words = ["calibrate", run, "--table", "--policy", _kind(policy), *_words(rows)]
    return _line(
        _step(words, "keeps what its other settings give, for a service to choose among"),
        _export(run),
    )


def after_calibrating(run: Path, policy: ExitPolicy | None = None) -> str:
    """What to do with a model that has its policy, or its table.

    Args:
        run: as typed.
        policy: that an export must be told to hold, since the model's own is another.
    """
    return _line(_export(run, [] if policy is None else ["--policy", policy_name(policy)]))


def after_export(
    folder: Path, calibration: Mapping[str, Any] | None, certificate: Certificate | None
) -> str:
    """What to do with an export.

    Args:
        folder: as typed.
        calibration: its table, where a service can choose among the settings.
        certificate: of its policy. Where that is of another loss than the table's bounds, or surer,
            a service must be told what may be lost.
    """
    plain = _line(_step(["serve", folder], "answers over HTTP"))
    if calibration is None:
        return plain
    bounds = [setting["loss_bound"] for setting in calibration["settings"]]
    alike = certificate is None or bounds_speak_of(calibration, certificate.to_json())
    if not alike and None in bounds:
        return plain
    scores = [setting["score"] for setting in calibration["settings"]]
    least = math.floor(100 * max(scores) - 1) / 100  # a point or two below
    words = ["serve", folder, "--target-ms", "50", "--min-score", f"{least:g}"]
    if not alike:
        most = max(b for b, score in zip(bounds, scores, strict=True) if score >= least)
        words += ["--max-loss", f"{math.ceil(100 * most)}"]
    return _line(_step(words, "answers over HTTP, sooner as load grows"))


def after_triton(folder: Path) -> str:
    """What to do with a model repository of Triton.

    Args:
        folder: as typed.
    """
    command = shlex.join(["tritonserver", f"--model-repository={folder}"])
    return _line(f"`{command}` serves it: ask the model {folder.name}, which asks its exits")


def _line(*steps: str) -> str:
    return f"next: {'; '.join(steps)}"


def _step(words: Sequence[Any], what: str) -> str:
    return f"`{shlex.join(['multiexit', *map(str, words)])}` {what}"


def _bounded(run: Path, rows: int, data: Sequence[str]) -> str | None:
    """The calibration by the least risk that half of the rows can bound, if there is one."""
    risk = next((r for r in (0.05, 0.1, 0.2) if rows // 2 >= rows_needed(r, 0.1)), None)
    if risk is None:
        return None
    what = f"makes it stop early, at most {100 * risk:g} % of answers changed"
    return _step(["calibrate", run, "--risk", risk, *data], what)


def _export(run: Path, more: Sequence[str] = ()) -> str:
    """The export into a folder that isn't there yet."""
    whole = run.resolve()
    name = f"{whole.parent.name if whole.name == 'model' else whole.name}-onnx"
    names = (name, *(f"{name}-{n}" for n in range(2, 100)))
    free = next((each for each in names if not Path(each).exists()), name)
    return _step(["export", run, free, *more], "writes it for onnxruntime, without PyTorch")


def _kind(policy: ExitPolicy) -> str:
    """A policy as `--policy` takes it where its first number is chosen anew."""
    name = policy_name(policy)
    return name if "," in name else name.partition("=")[0]


def _words(rows: ModelRows) -> list[str]:
    """The options of rows as they were typed."""
    words = []
    for name, value in vars(rows).items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value:
            every = value if isinstance(value, list) else [value]
            words += [word for each in every for word in (option, str(each))]
    return words
