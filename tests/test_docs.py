"""What the documentation shows works: Python blocks run, commands parse, the API is whole."""

import doctest
import importlib
import json
import pkgutil
import re
import shlex
from dataclasses import fields
from pathlib import Path
from textwrap import indent
from types import FunctionType, ModuleType
from typing import NamedTuple

import pytest
import torch
import typer
from transformers import TrainingArguments

import multiexit
import multiexit_runner
from multiexit.cli import app
from multiexit.evaluation import plain_words
from multiexit.training import trainer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [ROOT / "CONTRIBUTING.md", *(page for page in PAGES if not page.name.startswith("_"))]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.M | re.S)
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("multiexit", "multiexit_runner", "tests", "examples", "benchmarks", "docs")
    for path in (ROOT / folder).rglob("*.py")
)
DOORS = {"mx", "multiexit", "pictures", "presets", "report", "static", "testing"}
DOORS |= {n for n in multiexit.__all__ if isinstance(getattr(multiexit, n), ModuleType)}


class Block(NamedTuple):
    """A fenced block of a page: language, the rest of its info string, code, first line."""

    language: str
    info: str
    code: str
    line: int


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(m[1], m[2].strip(), m[3], text.count("\n", 0, m.start(3)))
        for m in FENCE.finditer(text)
    ]
    return [block for block in found if block.language == language]


def with_blocks(language: str) -> list:
    return [pytest.param(page, id=page.name) for page in PAGES if blocks(page, language)]


@pytest.mark.parametrize("page", with_blocks("python"))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    registered = dict(multiexit.wrap.registry)
    names = {"__name__": f"docs_{page.stem.replace('-', '_')}"}
    torch.manual_seed(0)
    for block in blocks(page, "python"):
        # Blank lines first, so that a traceback has the page's own line numbers.
        code = compile("\n" * block.line + block.code, str(page), "exec")
        if block.info in ("no-run", "own-test"):
            continue
        assert block.info == "", f"{page.name}: unknown mark {block.info!r}"
        exec(code, names)
    added = set(multiexit.wrap.registry) - set(registered)
    assert all(kind.__module__ == names["__name__"] for kind in added)


def test_few_blocks_are_not_run():
    every = [block for page in PAGES for block in blocks(page, "python")]
    skipped = [block for block in every if block.info == "no-run"]
    assert len(skipped) <= 0.1 * len(every), f"{len(skipped)} of {len(every)}"


@pytest.mark.parametrize("page", with_blocks("sh"))
def test_commands_parse(page):
    commands = typer.main.get_command(app).commands
    for block in blocks(page, "sh"):
        for line in block.code.replace("\\\n", " ").splitlines():
            _, found, rest = line.partition("multiexit.cli ")
            if line.startswith("multiexit "):
                found, rest = True, line.removeprefix("multiexit ")
            if found:
                name, *arguments = shlex.split(rest, comments=True)
                assert name in commands, f"{page.name}: no command {name!r}"
                commands[name].make_context(name, arguments)  # raises at a wrong option


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def spans(page: Path) -> list[str]:
    """What a page's prose has between backticks."""
    return re.findall(r"`([^`]+)`", prose(page))


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them: lower case, hyphens, no punctuation."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def with_name(page: Path) -> str:
    return page.name


@pytest.mark.parametrize("page", TEXTS, ids=with_name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", TEXTS, ids=with_name)
def test_files_named_in_prose_exist(page):
    for span in spans(page):
        for name in re.findall(r"[\w./-]+\.py\b", span):
            there = [path for path in FILES if f"/{path}".endswith(f"/{name}")]
            assert there, f"{page.name} names {name}, and there is no such file"


def unresolved(text: str) -> list[str]:
    """Names that begin with a door of the package and lead nowhere."""
    found = []
    for name in re.findall(r"(?<![\w./-])[A-Za-z]\w*(?:\.[A-Za-z_]\w*)+(?![\w/])", text):
        door, _, rest = name.partition(".")
        if door not in DOORS or rest in ("json", "py", "html"):
            continue
        try:
            pkgutil.resolve_name(f"multiexit.{rest if door in ('mx', 'multiexit') else name}")
        except (AttributeError, ImportError):
            found.append(name)
    return found


@pytest.mark.parametrize("page", TEXTS, ids=with_name)
def test_names_in_prose_resolve(page):
    assert [name for span in spans(page) for name in unresolved(span)] == []


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("multiexit/")])
def test_names_in_docstrings_resolve(name):
    spans = re.findall(r"`(multiexit\.[^`\n]+)`", (ROOT / name).read_text(encoding="utf-8"))
    assert [name for span in spans for name in unresolved(span)] == []


def test_a_new_parts_files_have_the_tables_it_is_added_to():
    rows = re.findall(r"^\| an? .+$", prose(ROOT / "CONTRIBUTING.md"), re.M)
    assert len(rows) > 8
    for row in rows:
        cells = re.findall(r"`([^`]+)`", row)
        named = [name for name in FILES if any(f"/{name}".endswith(f"/{c}") for c in cells)]
        code = "".join((ROOT / name).read_text(encoding="utf-8") for name in named)
        for word in cells:
            if word.isidentifier():
                assert re.search(rf"\b{word}\b", code), f"{word} is in none of the files of {row}"


@pytest.mark.parametrize("page", TEXTS, ids=with_name)
def test_prose_is_wrapped(page):
    long = [line for line in prose(page).splitlines() if len(line) > 100]
    assert [line for line in long if not line.startswith(("|", "#", "!"))] == []


def test_every_public_name_is_in_the_api():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)$", text, re.M))
    public = {name: getattr(multiexit, name) for name in multiexit.__all__}
    modules = {value.__name__ for value in public.values() if isinstance(value, ModuleType)}
    others = {f"multiexit.{name}" for name in public if not isinstance(public[name], ModuleType)}
    assert (modules | others) - shown == set()


def test_every_recipe_is_in_the_methods_table():
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for name, make in multiexit.recipes.RECIPES.items():
        assert f"| `{name}` | `recipes.{make.__name__}` |" in text


@pytest.mark.parametrize(
    ("table", "page", "shown"),
    [
        (multiexit.policies.POLICIES, "policies.md", "`{}="),
        (multiexit.heads.HEADS, "heads.md", '| `"{}"` |'),
        (multiexit.heads.CHAINED, "heads.md", '| `"…+{}"` |'),
        (multiexit.topology.NAMES, "losses-and-topologies.md", '`"{}"`'),
        (multiexit.weights.PARAMETRIZATIONS, "loss-weights.md", '`"{}"`'),
    ],
    ids=["policies", "heads", "chained heads", "topologies", "parametrisations"],
)
def test_every_name_is_in_its_page(table, page, shown):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert [name for name in table if shown.format(name) not in text] == []


MODULES = ["multiexit", *(m.name for m in pkgutil.walk_packages(multiexit.__path__, "multiexit."))]
MODULES += [multiexit_runner.Runner.__module__, multiexit_runner.Classifier.__module__]


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def definitions(name: str, value: object) -> dict[str, type | FunctionType]:
    """A public class or function by its name; of a public module, those that it hands out."""
    if not isinstance(value, ModuleType):
        return {name: value}
    return {
        f"{name}.{inner}": thing
        for inner, thing in vars(value).items()
        if isinstance(thing, type | FunctionType)
        and not inner.startswith("_")
        and thing.__module__.startswith(value.__name__)
    }


@pytest.mark.parametrize("name", sorted({*multiexit.__all__, *DOORS} - {"mx", "multiexit"}))
def test_every_public_name_has_an_example_that_runs(name):
    for called, thing in definitions(name, pkgutil.resolve_name(f"multiexit.{name}")).items():
        (found,) = doctest.DocTestFinder(recurse=False, exclude_empty=False).find(thing, called)
        examples = [e for e in found.examples if not e.options.get(doctest.SKIP)]
        assert examples, f"the docstring of {called} has no example (>>>)"
        assert thing.__module__ in MODULES, f"nobody runs the example of {called}"


def test_the_page_on_training_shows_the_trainers_loop():
    (loop,) = blocks(ROOT / "docs" / "training.md", "text")
    assert indent(loop.code, "    ") in trainer.__doc__


def test_the_page_on_commands_shows_what_a_recommendation_says():
    (said,) = blocks(ROOT / "docs" / "command-line.md", "text")
    assert indent(said.code, " " * 8) in plain_words.explain.__doc__  # which is run


def test_settings_go_by_these_names_in_transformers():
    text = (ROOT / "docs" / "words-and-letters.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_]+)` \| `([a-z_0-9]+)` \|", text, re.M)
    assert len(rows) > 10
    assert {ours for ours, _ in rows} <= {field.name for field in fields(multiexit.TrainConfig)}
    assert {theirs for _, theirs in rows} <= {field.name for field in fields(TrainingArguments)}


FIGURE = re.compile(
    r"(?<![\w.])\d[\d.,]*[\s-]?(?:%|×|(?:[mµ]?s|[kMG]i?B|points?|seconds?|minutes?|hours?)\b)"
    r"|(?<![\w.])\d+\.\d+(?!\.?\w)|×\s?\d[\d.]*|\b\d[\d.]*e-?\d+\b|\d[\d,]* of [\w' ]*\d[\d,]*"
    r"|\d[\d.]* times (?:as|faster|slower|fewer|less|more)\b"
)
NO_PROSE = re.compile(r"\$\$.*?\$\$|\$[^$]+\$|`[^`]+`|\]\([^)]*\)|[Ss]ection [\d.]+\d", re.S)
NOT_MEASURED = """
README.md: Python ≥ 3.11 · Apache-2.0
backbones.md: wav2vec 2.0
calibration.md: temperature ends at 0.01 · the middle 95 % · at 0.9, up to one draw in ten
calibration.md: a risk of 5 % with a confidence of 90 % · 0.01 by default
calibration.md: more than 1 % of the rows · a `loss_bound` of 0.005
choose-a-method.md: = **1.33** · = **1.67** · = **2.67**, at each fourth step 1.42
choose-a-method.md: | 1.33 | 1.17 | 1.08 | · LLE on all seven GLUE tasks, by 0.1 to 0.5 points
command-line.md: are shares, 0.84 · in points, 0.5 for 84.5 to 84.0
data.md: the learning rate is 1e-4 · such as 1 and 1.0 · within 1.5 of 255 levels
decisions.md: in 0.5..1
embeddings.md: MiniLM-L6-v2 of 6 · correlation × 100 · at 1.5× or · At 0.1 · 90 % conf · up to 0.1
engine.md: for 0.05 s
evaluation.md: nearest to 2× · F1 of class 1
export.md: after 0.05 s · 1 % of the largest (at least 0.01) · 95 % by default · to 2 GB
export.md: From 1.29 on · 23.09 or · Triton 24.10
heads.md: dropout of 0.1
loss-weights.md: 7/6, or 1.17 · by 0.02 changes a weight by 2 % · 0.01 in its code · is 1.9 to 0.1
losses-and-topologies.md: multiplies by 1.05
many-devices.md: after 30 seconds · for 10 minutes · of 10 minutes
methods.md: the paper's 6-layer model is at 1.96× · 75.6 there, 78.6 in PABEE's
methods.md: grows by ×1.05 · exceeds 0.5 · γ = 0.9 · 0.03 for an exit; its code has 0.01 to 0.09
methods.md: its code: 0.15, 0.30 · a floor of 0.1
policies.md: by 0.02 of · (0.02·N)
predict.md: for 0.05 s
quickstart.md: Python 3.11 · images of 8×8
results.md: patience of 4 of 12
serving.md: HTTP/1.1 · above 1 MB · for 75 s · 95 % of · 95 % were answered in time · (0.1)
serving.md: waits 60 s · gives 10 s · to a k-th of 0.01, with eight 0.00125
serving.md: a share, 0.84 · in points: 0.5 is 84.5 to 84.0 · a `loss_bound` of 0.005
serving.md: Debian with Python 3.12
serving.md: by 0.02 of · (0.02·N) · (0.01) is α · Ray 2.60 · 30 seconds · 10 minutes
static-baselines.md: steps of 10 % · α = 0.7 · b = 0.3, k = 0.0006 · 9e9e860
training.md: processes 30 seconds · up to 2 GiB · falls by ×0.1
tuning.md: 1e-5, 2e-5, 3e-5, 5e-5 · 1e-5, 1e-4, 1e-3, 5e-3 · 0.1 for text · its 95 % confidence
words-and-letters.md: 0.1 by default · 0.01 by default
"""
"""Of pages: settings and defaults, definitions, mathematics, what a test holds, and what papers and
their code say."""
COUNTS = ["58 of 62 text", "66 of 77 networks", "91 of timm's 98"]
"""Of README.md, compared with their JSON below."""


def measured(page: str, text: str) -> list[str]:
    """What looks like a measured figure in a page's prose."""
    lines = [line.partition(": ") for line in NOT_MEASURED.strip().splitlines()]
    allowed = [each for name, _, rest in lines if name == page for each in rest.split(" · ")]
    text = " ".join(text.split())
    for snippet in allowed + COUNTS * (page == "README.md"):
        text = text.replace(snippet, "–")
    return FIGURE.findall(NO_PROSE.sub("–", text))


def test_no_measured_figure_is_typed():
    """The build makes tables of them from JSON; prose says in words what they say."""
    for typed in ("1.75× as fast", "4 ms", "a cosine of 0.92", "0 of 720 differ", "13.2 MB"):
        assert measured("training.md", f"A step was {typed} so."), typed
    pages = [page for page in PAGES if not page.name.startswith("_")]
    assert {page.name: found for page in pages if (found := measured(page.name, prose(page)))} == {}


def test_the_counts_of_networks_are_those_measured():
    def rows(name):
        return json.loads((ROOT / "docs/results" / name).read_text(encoding="utf-8"))["rows"]

    count = {
        row["kind"]: (row["wrapped"], row["families"]) for row in rows("families/wrapped.json")
    }
    count |= {row["of"]: (row["wrapped"], row["networks"]) for row in rows("vision/shares.json")}
    others = [sum(pair) for pair in zip(*map(count.get, ("image", "video", "audio")), strict=True)]
    text, timm = count["text"], count["families of timm"]
    said = [f"{text[0]} of {text[1]} text", f"{others[0]} of {others[1]} networks"]
    assert [*said, f"{timm[0]} of timm's {timm[1]}"] == COUNTS
    assert count["decoder"] == (64, 64)
    assert count["classifiers of torchvision"] == (80, 80)
