"""Who may import whom: rooms point one way, and no file imports itself on a way round."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import multiexit

HOUSE = Path(multiexit.__file__).parent
GROUND = {"_version", "arguments", "files", "problems", "randomness", "runtime", "starting"}
MAY = {
    **dict.fromkeys((*GROUND, "policies", "losses", "backbones"), GROUND),
    "data": GROUND | {"losses"},
    "model": GROUND | {"backbones", "losses", "policies"},
    "testing": GROUND | {"backbones", "losses", "model", "policies"},
    "serving": GROUND | {"backbones", "data", "losses", "model", "policies"},
    "evaluation": GROUND | {"data", "losses", "model", "policies"},
}
MAY["recipes"] = MAY["evaluation"] | {"backbones", "evaluation"}
MAY["training"] = MAY["recipes"] | {"recipes"}
MAY["integrations"] = MAY["training"] | {"training"}
MAY["cli"] = MAY["__init__"] = {*MAY, "cli", "__init__"}


def name_of(path: Path) -> str:
    parts = path.relative_to(HOUSE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in HOUSE.rglob("*.py")}


def imported(name: str) -> set[str]:
    """The package's modules that a file imports: in functions and for types alone too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {full if full in MODULES else str(node.module) for full in inner}
    return (found & MODULES.keys()) - {name}


def room(name: str) -> str:
    return (*name.split("."), "__init__")[1]


ARROWS = {name: imported(name) for name in MODULES}


def test_rooms_import_only_what_lies_below_them():
    wrong = [
        f"{name} -> {other}"
        for name, others in ARROWS.items()
        for other in others
        if room(name) != room(other) and room(other) not in MAY[room(name)]
    ]
    assert wrong == []


def test_there_are_no_circles():
    TopologicalSorter(ARROWS).prepare()  # raises, and names one


def test_few_modules_lie_outside_of_the_rooms():
    assert len([path for path in HOUSE.glob("*.py") if path.stem != "__init__"]) <= 7


def test_contributing_shows_the_arrows():
    text = (HOUSE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", text, re.M)
    shown = {name: {*re.findall(r"`(\w+)`", others)} for name, others in rows}
    rooms = MAY.keys() - GROUND - {"cli", "__init__"}
    assert shown == {"cli": set(), **{name: MAY[name] - GROUND for name in rooms}}
