"""The command that makes a page of runs."""

from pathlib import Path
from typing import Annotated

import typer


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

    target = output or (runs[0] / "report.html" if len(runs) == 1 else Path("report.html"))
    if target.is_dir():
        raise ValueError(f"--output {target} is a folder: name a file, such as report.html")
    if not target.parent.is_dir():
        raise ValueError(f"--output {target}: there is no folder {target.parent}")
    page = html_page(runs)
    write(target, lambda path: path.write_text(page, encoding="utf-8"))
    print(f"written: {target} ({len(page.encode()) / 1e6:.2f} MB)")
    if open_ and not webbrowser.open(target.resolve().as_uri()):
        print("no browser was found: open the file by hand")
