"""Commands that show: runs as a page, the recipes, what a backbone or a folder holds."""

from inspect import signature
from pathlib import Path
from typing import Annotated

import typer

from multiexit.cli import typed
from multiexit.files.names import RUN
from multiexit.files.paths import check_folder


def report(
    runs: Annotated[list[Path], typer.Argument(help="folders that `train` or `evaluate` wrote")],
    output: Annotated[
        Path | None,
        typer.Option(help="the page; default RUN/report.html, of several runs report.html here"),
    ] = None,
    open_: Annotated[bool, typer.Option("--open", help="show it in a browser")] = False,
) -> None:
    """Make one HTML page about runs, which needs no network and no other file.

    Examples:

    multiexit report runs/mrpc --open

    multiexit report runs/mrpc-leebert runs/mrpc-pabee --output both.html
    """
    import webbrowser

    from multiexit.evaluation.page.page import html_page
    from multiexit.files.writing import write

    for run in runs:
        if run.is_file():
            raise ValueError(f"{run} is a file; report takes a run's folder")
    target = output or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    if target.is_dir():
        raise ValueError(f"--output {target} is a folder: name a file, such as report.html")
    if not target.parent.is_dir():
        raise ValueError(f"--output {target}: there is no folder {target.parent}")
    check_folder("--output", target.parent)
    page = html_page(runs)
    write(target, lambda path: path.write_text(page, encoding="utf-8"))
    print(f"written: {target} ({len(page.encode()) / 1e6:.2f} MB)")
    if open_ and not webbrowser.open(target.resolve().as_uri()):
        print("no browser was found: open the file by hand")


def recipes() -> None:
    """List the training methods, and the networks without early exits, with paper and section.

    Example: multiexit recipes
    """
    from multiexit.recipes import RECIPES
    from multiexit.recipes.static import BASELINES

    print("With exits: multiexit train --recipe NAME\n")
    for make in RECIPES.values():
        recipe = make()
        print(f"{recipe.name:<18} {recipe.summary}")
        print(f"{'':<18} {recipe.paper} ({recipe.year}), section {recipe.section}")
    print("\nWithout early exits: multiexit baseline NAME\n")
    for make in BASELINES.values():
        network, options = make(), signature(make).parameters.values()
        print(f"{network.name:<18} {network.summary} ({network.rows})")
        print(f"{'':<18} {network.paper} ({network.year}), section {network.section}")
        if options:
            typed_options = ", ".join(f"{each.name}={each.default}" for each in options)
            print(f"{'':<18} --option {typed_options}")


def info(
    backbone: Annotated[
        str,
        typer.Argument(
            help="hub name, folder, cifar-resnet-N, timm:NAME, …; or a trained run, or an export"
        ),
    ],
    classes: Annotated[int | None, typer.Option(min=1, max=100_000, help="default 2")] = None,
    exits: Annotated[
        str | None, typer.Option(help="all, k, stages 3,7,11 or shares 0.25,0.5,1.0; default all")
    ] = None,
    head: Annotated[str | None, typer.Option(help="as for `train`; default linear")] = None,
) -> None:
    """What a folder of a run, a model or an export holds; or the exits that a backbone can have.

    Models and backbones with parameters and MACs up to each exit.

    Examples:

    multiexit info cifar-resnet-56 --classes 10

    multiexit info runs/reviews
    """
    from multiexit import MultiExitModel, wrap
    from multiexit.evaluation import card, report
    from multiexit.model.folder import SETTINGS
    from multiexit.model.settings import read_settings
    from multiexit.training.records import provenance
    from multiexit_runner.folder import SETTINGS as EXPORT

    folder = typed.model_folder(Path(backbone))
    if any((folder / name).is_file() for name in (SETTINGS, EXPORT, RUN)):
        given = {"--classes": classes, "--exits": exits, "--head": head}
        for option, value in given.items():
            if value is not None:
                raise ValueError(f"{option} is for a backbone, and {folder} has exits: leave it")
        if (folder / EXPORT).is_file():
            print(_export_text(folder))
            return
        settings = read_settings(folder / SETTINGS)
        how, trained = settings["preprocessing"], provenance.settings(folder.parent)
        known = {
            "a trained model": str(folder),
            **card.facts(settings),
            "reads": how.get("kind"),
            "trained on": how.get("task") or (how.get("data") or {}).get("data"),
            "trained by": ", ".join(f"{name} {value}" for name, value in trained.items()),
        }
        print("\n".join(f"{key}: {value}" for key, value in known.items() if value) + "\n")
        print(report.cost_table(MultiExitModel.from_pretrained(folder).cost()))
        return
    model = MultiExitModel(wrap(backbone), classes or 2, typed.exits(exits or "all"), head)
    print(report.cost_table(model.cost()))


def _export_text(folder: Path) -> str:
    """What an export holds, a line for each fact; its graphs are not run."""
    from multiexit.evaluation import card
    from multiexit_runner.folder import SETTINGS, read_file, read_folder
    from multiexit_runner.settings import parse_settings

    export = read_folder(folder)
    settings = parse_settings(read_file(export, SETTINGS), str(export.path / SETTINGS))
    how, stages, int8 = settings["preprocessing"], settings["exits"], settings["int8"]
    megabytes = sum((export.path / name).stat().st_size for name in export.sums) / 1e6
    known = {
        "an export": f"{folder}, for multiexit_runner",
        **card.facts(settings),
        "reads": how.get("kind"),
        "trained on": how.get("task") or (how.get("data") or {}).get("data"),
        "graphs": f"{len(stages)}, up to layers {', '.join(str(n + 1) for n in stages)}; "
        f"{megabytes:.1f} MB in all",
        "int8": int8 and f"for {int8['machines']}",
        "can be turned": ", ".join(settings["knobs"]),
    }
    return "\n".join(f"{key}: {value}" for key, value in known.items() if value)
