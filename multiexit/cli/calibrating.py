"""A saved model gets a policy for a target, as the command line does it."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from multiexit.arguments import check_share
from multiexit.data.own.notes import say
from multiexit.data.tasks import TaskData
from multiexit.evaluation import card, exit_losses, guarantee, report
from multiexit.evaluation.budget import Budget, budgeted
from multiexit.evaluation.calibration import calibrate
from multiexit.evaluation.calibration_table import calibration_table
from multiexit.evaluation.exported import collect_exported
from multiexit.evaluation.grids import policy_settings
from multiexit.evaluation.judging import judge
from multiexit.evaluation.metrics import label
from multiexit.evaluation.outputs import Outputs, collect, rows_in_share
from multiexit.evaluation.targets import TARGETS, Target, mean_ms
from multiexit.evaluation.temperature_scaling import fit_temperatures
from multiexit.model.folder import SETTINGS, WEIGHTS, backbone_spec, save_settings
from multiexit.model.latency import Latency, check_latency
from multiexit.model.model import MultiExitModel
from multiexit.policies import (
    POLICIES,
    CalibrationTable,
    ExitPolicy,
    FixedExit,
    MaxProb,
    parse,
    registry,
)
from multiexit.policies.base import need_classes
from multiexit.problems import classes_of_decision


def named(text: str) -> type[ExitPolicy] | ExitPolicy:
    """A policy by its name, `max-prob`, or with numbers that stay, `patient-confident=0.2,3`."""
    return parse(text) if "=" in text or text not in POLICIES else POLICIES[text]


def default_kind(model: MultiExitModel) -> type[ExitPolicy] | ExitPolicy:
    """`MaxProb`; of a model without classes its own policy, whose first number is chosen anew."""
    try:
        policy_settings(MaxProb, model.num_exits, model.num_classes, model.problem)
    except ValueError:
        if model.policy is not None:
            say(
                f"max-prob needs classes, and this model answers {model.problem}: calibrated is "
                f"its own policy, {registry.policy_name(model.policy)}, whose first number is "
                "chosen anew (--policy)"
            )
            return model.policy
    return MaxProb


ASIDE = {
    "by": ("layers", "--speedup or --score"),
    "batch_size": (1, "--milliseconds or --by time"),
    "confidence": (0.9, "--risk"),
    "loss": ("disagreement", "--risk"),
}
"""What goes with a target: the default, and with which."""


def complete(target: dict[str, Any], share: float) -> dict[str, Any]:
    """A target as it was typed, with defaults for what goes with it.

    Args:
        target: as for `run`, None for what wasn't given.
        share: of the rows.

    Raises:
        ValueError: no target or several, a number that none can have, or something that has no
            effect beside the target.
    """
    names = {name for name, value in target.items() if value is not None}
    targets = [name for name in ("budget", *TARGETS) if name in names]
    if len(targets) != 1:
        every = ", ".join(f"--{name}" for name in (*TARGETS, "budget"))
        got = " and ".join(f"--{name}" for name in targets) or "none"
        raise ValueError(f"calibrate has one target: give one of {every}, or --table; got {got}")
    effective = {
        "by": targets[0] in ("speedup", "score"),
        "batch_size": targets[0] == "milliseconds" or target["by"] == "time",
        "confidence": targets[0] == "risk",
        "loss": targets[0] == "risk",
    }
    for name, has_effect in effective.items():
        if name in names and not has_effect:
            raise ValueError(
                f"{name} goes with {ASIDE[name][1]}, and has no effect beside --{targets[0]}: "
                "leave it out"
            )
    defaults = {name: default for name, (default, _) in ASIDE.items()}
    filled: dict[str, Any] = {n: defaults.get(n) if v is None else v for n, v in target.items()}
    if target["risk"] is None:
        filled["loss"] = None
    if target["score"] is not None:
        check_share("score", target["score"], "[0, 1]")
    check_share("share", share, "(0, 1)")
    for name in ("milliseconds", "budget"):
        if target[name] is not None and not target[name] > 0:
            raise ValueError(f"{name} must be above 0, got {target[name]}")
    # Milliseconds and time need the model's table.
    if targets[0] not in ("milliseconds", "budget") and filled["by"] != "time":
        Target(**{name: value for name, value in filled.items() if name != "budget"})
    return filled


def check_table(given: dict[str, Any], temperatures: bool) -> None:
    """Refuse what has no effect beside `--table`, and a confidence that none can have.

    Raises:
        ValueError: with the option's name.
    """
    names = [name for name, value in given.items() if value is not None and name != "confidence"]
    if others := [*names, *["temperatures"] * temperatures]:
        raise ValueError(
            f"--{others[0].replace('_', '-')} has no effect beside --table, which is of all "
            "settings on the whole set: leave it out"
        )
    if given["confidence"] is not None:
        check_share("confidence", given["confidence"], "(0, 1)")


def tabulate(
    model: MultiExitModel,
    folder: Path,
    task: TaskData,
    policy: type[ExitPolicy] | ExitPolicy,
    confidence: float,
) -> ExitPolicy | None:
    """Keep with a model what each setting of a policy gives on a task's main set, and print it.

    Args:
        model, folder: the model and where it was saved.
        task: whose first set is used, all of it.
        policy, confidence: as for `multiexit.calibration_table`.

    Returns:
        A setting of the table, where the model's own policy is of another kind.

    Raises:
        ValueError: what `multiexit.calibration_table` refuses; nothing is saved then.
    """
    policy_settings(policy, model.num_exits, model.num_classes, model.problem)  # or refuses it
    rows = next(iter(task.sets.values()))
    outputs = collect(model, rows, task.metric, keys=False)
    model.calibration = calibration_table(outputs, policy, confidence=confidence)
    save_settings(folder, model.settings(backbone_spec(model.backbone)))
    card.renew_card(folder)
    print(f"{task.main}, {model.calibration.rows} rows")
    if model.calibration.loss is not None:
        bounded = model.calibration.loss
        print(
            f"Bounds on the {bounded} lost against the last exit hold with confidence "
            f"{confidence:g}."
        )
        if bounded != model.calibration.metric:
            print(f"More may be lost of the score, the {label(model.calibration.metric)}.")
    print()
    print(report.calibration_table(model.calibration))
    print(f"\nwritten: {folder / SETTINGS}, with this table")
    safe = model.calibration.near_full().policy
    if type(model.policy) is type(safe):
        return None
    if model.policy is not None:
        own = registry.policy_name(model.policy)
        print(
            f"The model itself stops by {own}, which is of another kind than this table: "
            f"--policy {own.partition('=')[0]} makes one of it."
        )
    return safe


def measured(
    model: MultiExitModel,
    read: Callable[[], TaskData],
    policy: ExitPolicy,
    notes: Callable[[str], None],
) -> Callable[[Any], CalibrationTable | None]:
    """What makes the calibration table of an export in int8 from its own answers.

    Args:
        model: with a table of this kind of policy.
        read: gives the rows, with labels.
        policy: of the export.
        notes: is told how far it is.

    Returns:
        The table of a runner, or None where rows or answers won't do; which of them is said.
    """

    def table_of(runner: Any) -> CalibrationTable | None:
        assert model.calibration is not None
        try:
            task = read()
            main_set = next(iter(task.sets.values()))
            outputs = collect_exported(runner, model, main_set, task.metric, notes)
            made = calibration_table(outputs, policy, confidence=model.calibration.confidence)
        except (ValueError, OSError) as error:
            warnings.warn(
                "the calibration table has the float model's scores and layers, and no bounds, "
                f"since it can't be measured on the export: {error}. Rows with labels, a table "
                "that --data names, do too",
                stacklevel=2,
            )
            return None
        say(f"the calibration table is measured in int8, on {made.rows} rows: {task.main}")
        return replace(made, precision="int8")

    return table_of


def run(
    model: MultiExitModel,
    folder: Path,
    task: TaskData,
    policy: type[ExitPolicy] | ExitPolicy,
    target: dict[str, Any],
    share: float = 0.5,
    seed: int = 0,
    temperatures: bool = False,
) -> None:
    """Calibrate on a random share of a task's main set, save, judge on the rest, and print that.

    With temperatures, half of the share fits them and the other half calibrates, so that a bound
    on the risk stays one.

    Args:
        model, folder: the model and where it was saved; its policy, and its temperatures if they
            are fitted, are saved there anew.
        task: whose first set is used.
        policy: as for `multiexit.calibrate`.
        target: one, as for `multiexit.calibrate`, or `budget`, as for `multiexit.budgeted`.
        share, seed: of the draw of rows.
        temperatures: fit them too.

    Raises:
        ValueError: what can't be had. All that can be known before is refused before the model
            runs; nothing is saved then.
    """
    choose = _policy_chooser(model, folder, policy, target)
    rows = next(iter(task.sets.values()))
    rows_used = rows_in_share(len(rows), share)  # type: ignore[arg-type]
    if temperatures:
        need_classes(classes_of_decision(model.problem, model.num_classes), "--temperatures")
    rows_calibrating = rows_used - rows_in_share(rows_used, 0.5) if temperatures else rows_used
    if target.get("risk") is not None:
        bound = exit_losses.bound_of(target["loss"])
        guarantee.check_rows(rows_calibrating, target["risk"], 1 - target["confidence"], bound)
    outputs = collect(model, rows, task.metric)
    if temperatures:
        fit_temperatures(model, outputs.split(share, seed)[0].split(0.5, seed)[0])
        outputs = collect(model, rows, task.metric)  # confidences have changed
    calibration, rest = outputs.split(share, seed)
    calibrated = choose(calibration.split(0.5, seed)[1] if temperatures else calibration)
    certificate = calibrated.certificate
    if (
        certificate is not None and calibration.keys_B is not None
    ):  # temperatures' rows were seen too
        certificate = replace(certificate, keys=tuple(sorted(calibration.keys_B.tolist())))
        calibrated = calibrated.with_certificate(certificate)
        rest = rest.without(certificate)
    before, model.policy = model.policy, calibrated
    if temperatures:
        model.save_pretrained(folder)
    else:
        save_settings(folder, model.settings(backbone_spec(model.backbone)))
    card.renew_card(folder)
    rows_judging = len(rest.labels_B)
    print(f"{task.main}: {rows_calibrating} rows calibrate, {rows_judging} others judge")
    print(_report_text(model, rest, calibrated, target))
    print(f"\n{written(folder, calibrated, before)}")
    if temperatures:
        fitted = ", ".join(f"{temperature:.3g}" for temperature in model.temperature_M.tolist())
        print(f"written: {folder / WEIGHTS}, with the exits' temperatures {fitted}")


def written(folder: Path, policy: ExitPolicy, before: ExitPolicy | None) -> str:
    """Say that a model got a policy, and which one that replaced."""
    was = "it had none" if before is None else f"was {registry.policy_name(before)}"
    name = registry.policy_name(policy)
    return f"written: {folder / SETTINGS}, with the policy {name} ({was})"


def latency_of(model: MultiExitModel, folder: Path) -> Latency:
    """The latency table of a model in a folder; ValueError if there is none of this machine."""
    if model.latency is None:
        raise ValueError(
            f"{folder} has no latency table, which milliseconds and time need: measure one with "
            f"`multiexit profile {folder}`"
        )
    check_latency(model, model.num_exits, model.latency)
    return model.latency


def _policy_chooser(
    model: MultiExitModel,
    folder: Path,
    policy: type[ExitPolicy] | ExitPolicy,
    target: dict[str, Any],
) -> Callable[[Outputs], ExitPolicy]:
    """Refuse all that can be refused before the model runs, and give what picks the policy."""
    target = dict(target)
    budget = target.pop("budget", None)
    if budget is not None:
        if policy is not MaxProb:
            raise ValueError("a budget sets thresholds of max-prob: leave --policy out")
        others = [name for name in TARGETS if target[name] is not None]
        if others:
            raise ValueError(f"calibrate has one target, got budget and {', '.join(others)}")
        Budget(budget).check(model)
        return lambda outputs: budgeted(outputs, budget)
    if target["milliseconds"] is not None or target["by"] == "time":
        target["latency"] = latency_of(model, folder)
    Target(**target)
    if target["risk"] is not None:
        exit_losses.check_classes(model.num_classes, model.problem)
    policy_settings(policy, model.num_exits, model.num_classes, model.problem)  # or refuses it
    return lambda outputs: calibrate(outputs, policy, **target)


def _report_text(
    model: MultiExitModel, rest: Outputs, policy: ExitPolicy, target: dict[str, Any]
) -> str:
    """The policy beside no early exit, and how the bound or the time was kept."""
    row = judge(rest, policy)
    lines = [report.policy_table([judge(rest, FixedExit(rest.num_exits - 1)), row])]
    certificate = policy.certificate
    if certificate is not None:
        mean = exit_losses.realised(rest, policy, certificate.loss)
        lines.append(
            f"loss ({certificate.loss}) on these {len(rest.labels_B)} rows: {100 * mean:.2f} %; on "
            f"new rows like these it is at most {100 * certificate.risk:g} % on average, with "
            f"confidence {certificate.confidence:g}"
        )
    if model.latency is not None:
        size = target["batch_size"]
        full_ms = model.latency.at(model.latency.full_ms, size)
        lines.append(
            f"a batch of {size}: {mean_ms(row, model.latency, size):.3g} ms, {full_ms:.3g} ms "
            f"without early exits ({model.latency.machine})"
        )
    return "\n".join(lines)
