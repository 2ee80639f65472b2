"""The command that says which policy to take."""

from pathlib import Path
from typing import Annotated

import typer

from multiexit.cli import typed
from multiexit.cli.row_options import ModelRows
from multiexit.cli.words import LAST_SEED, Model, spread
from multiexit.files.names import RUN
from multiexit.files.paths import check_folder


@spread
def recommend(
    model: Model,
    rows: ModelRows,
    speedup: Annotated[float | None, typer.Option(help="by layers, at least")] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="of score on the rows that choose, in points (0.5 is 84.5 → 84.0), at most"
        ),
    ] = None,
    milliseconds: Annotated[float | None, typer.Option(help="per batch, at most")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="for milliseconds; default 1")
    ] = None,
    share: Annotated[float, typer.Option(help="of the set, to choose on")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, max=LAST_SEED, help="of the rows' draw")] = 0,
    write: Annotated[bool, typer.Option("--write", help="store the policy in the model")] = False,
) -> None:
    """Say which policy to take for one target, what it costs, and how sure that is.

    Several kinds of policies are tried on a share of the development set; the rest judges the best.

    Examples:

    multiexit recommend runs/mrpc --speedup 2 --data-dir data

    multiexit recommend runs/mrpc --max-loss 0.5 --write

    multiexit recommend runs/mrpc --milliseconds 20 --batch-size 8
    """
    from multiexit import problems
    from multiexit.arguments import check_share
    from multiexit.cli import calibrating, next_steps, sources
    from multiexit.evaluation import card, plain_words, report
    from multiexit.evaluation.judging import exit_scores
    from multiexit.evaluation.outputs import collect, rows_in_share
    from multiexit.evaluation.recommendation import check_target
    from multiexit.evaluation.recommendation import recommend as choose
    from multiexit.model.folder import backbone_spec, save_settings
    from multiexit.policies.registry import policy_name
    from multiexit_runner.choosing import SMALL

    loss = None if max_loss is None else max_loss / 100
    check_target(speedup=speedup, max_loss=loss, milliseconds=milliseconds)
    if batch_size is not None and milliseconds is None:
        raise ValueError("--batch-size goes with --milliseconds: leave it out")
    check_share("share", share, "(0, 1)")
    folder = typed.model_folder(model)
    if write:
        check_folder("the model's folder", folder)
    loaded, task = sources.load(folder, rows)
    latency = None if milliseconds is None else calibrating.latency_of(loaded, folder)
    main_set = next(iter(task.sets.values()))
    one = 100 / rows_in_share(len(main_set), share)
    if max_loss is not None and 0 < max_loss < min(one, SMALL):
        raise ValueError(
            f"max_loss is in points, and {max_loss:g} is less than one row of those that choose "
            f"({one:.2g}): did you mean {100 * max_loss:g}? 0 is no loss at all"
        )
    outputs = collect(loaded, main_set, task.metric)
    advice = choose(
        outputs,
        speedup=speedup,
        max_loss=loss,
        milliseconds=milliseconds,
        latency=latency,
        batch_size=batch_size or 1,
        own=loaded.policy,
        share=share,
        seed=seed,
    )
    print(f"{task.main}: {policy_name(advice.row.policy)}\n")
    print(plain_words.explain(advice, outputs.cost.layers_M, outputs.metric))
    if milliseconds is not None:
        print(plain_words.time(advice, loaded.latency, batch_size or 1))
    if problems.resolve(loaded.problem, loaded.num_classes) == "classification":
        scores = [row["score"] for row in exit_scores(outputs)]
        lacks_pooler = loaded.preprocessing.get("kind") == "text" and loaded.head != "own-pooler"
        advised = plain_words.weak_exits(scores, len(outputs.labels_B), lacks_pooler)
        if advised and (lacks_pooler or not _trained_by(folder, "leebert-group-dro")):
            print(f"\n{advised}")
    print(f"\nTried, on the {advice.rows_chosen} rows that chose, and the full network:\n")
    others = [row for row in advice.tried if row.policy != advice.full_tried.policy]
    print(report.policy_table([*others, advice.full_tried]))
    if write:
        before, loaded.policy = loaded.policy, advice.row.policy
        save_settings(folder, loaded.settings(backbone_spec(loaded.backbone)))
        card.renew_card(folder)
        print(f"\n{calibrating.written(folder, loaded.policy, before)}")
    print(("" if write else "\n") + next_steps.after_recommending(model, advice, rows, write))


def _trained_by(folder: Path, recipe: str) -> bool:
    """Whether a run that lies around a model's folder says that it was trained so."""
    run = folder.parent / RUN
    return run.is_file() and recipe in run.read_text(encoding="utf-8")
