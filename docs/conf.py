"""Sphinx settings. Build with `make docs`, or `sphinx-build -W -b html . _build/html` here."""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "benchmarks")]

import evidence_page  # noqa: E402
import paper_page  # noqa: E402
import promises_page  # noqa: E402

import multiexit  # noqa: E402
from multiexit.evaluation.report import table  # noqa: E402

project = "multiexit"
author = "the multiexit authors"
release = version = multiexit.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "results/index.md", "_*.md"]  # pages that others include

html_theme = "furo"
html_title = "multiexit"

default_role = "code"  # single backticks in docstrings
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Inputs", "Relations"]  # of the recipes
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures are in the heading, meanings in the docstring
autodoc_default_options = {"members": True, "show-inheritance": True}
python_display_short_literal_types = True


def write_results_pages() -> None:
    """Make what results.md includes, from the JSON of runs, of the paper and of promises."""
    (HERE / "results" / "index.md").write_text(evidence_page.page(), encoding="utf-8")
    (HERE / "_paper.md").write_text(paper_page.page(), encoding="utf-8")
    (HERE / "_promises.md").write_text(promises_page.page(), encoding="utf-8")


def rows_table(rows: list[dict[str, Any]]) -> str:
    """Rows of a benchmark's JSON as a table."""
    cells = [
        {k: f"{v:.3f}" if isinstance(v, float) else str(v) for k, v in row.items()} for row in rows
    ]
    return table(cells, markdown=True)


def write_one_table(source: Path, target: Path) -> None:
    """Make the table of one JSON file, which a page includes."""
    rows = json.loads(source.read_text(encoding="utf-8"))["rows"]
    target.write_text(rows_table(rows) + "\n", encoding="utf-8")


def write_tables(folder: Path, target: Path) -> None:
    """Make a page of tables, which another page includes, from a folder of the benchmarks' JSON."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        about = data["about"]
        used = " · ".join(f"{key} {value}" for key, value in about["versions"].items())
        parts += [f"## {path.stem}", f"```sh\n{about['command']}\n```"]
        parts += [f"{about['machine']} · {used}", about.get("note", "")]
        parts += [rows_table(data["rows"])]
    target.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")


def escape_bars(app, what, name, obj, options, lines) -> None:
    """|T(m)| in a docstring is the size of a set, not a substitution of reStructuredText."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        lines[number] = "`".join(
            part.replace("|", "\\|") if index % 2 == 0 else part for index, part in enumerate(parts)
        )


def setup(app) -> None:
    app.connect("autodoc-process-docstring", escape_bars)


write_results_pages()
write_tables(HERE.parent / "benchmarks" / "results", HERE / "_benchmarks.md")
write_tables(HERE / "results" / "embeddings", HERE / "_embeddings.md")
write_tables(HERE / "results" / "methods", HERE / "_methods.md")
write_tables(HERE / "results" / "families", HERE / "_families.md")
write_tables(HERE / "results" / "vision", HERE / "_vision.md")
TOY = HERE.parent / "benchmarks" / "results" / "hypergradient-toy.json"
write_one_table(TOY, HERE / "_hypergradient.md")
