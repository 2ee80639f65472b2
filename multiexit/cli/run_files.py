"""Options of a command from a file: YAML or JSON by their names, or the `run.json` of a run."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from multiexit.arguments import suggest
from multiexit.files.json_files import read_json
from multiexit.files.paths import regular_file

LARGEST = 2**20
"""Bytes of a file of options."""

OF_THE_FOLDER = ("resume", "overwrite", "force")
"""Options that are about a run's folder, so none of a run that is done again elsewhere."""


def expanded(program: Any, words: Sequence[str]) -> list[str]:
    """A command line with the options of its `--config` written out; those typed beside it win.

    Args:
        program: the click group.
        words: what was typed behind its name.

    Raises:
        ValueError: a file that holds no options, or one that the command doesn't have.
        OSError: the file can't be read.
    """
    command = program.commands.get(words[0]) if words else None
    options = {} if command is None else {p.name: p for p in command.params}
    if "config_file" not in options:
        return list(words)
    typed = _pairs(words[1:], options.values())
    given = [pair[-1].removeprefix("--config=") for name, pair in typed if name == "config_file"]
    if not given or given == ["--config"]:  # without a value
        return list(words)
    path, names = Path(given[0]), {name for name, _ in typed}
    chosen = [pair for name, pair in _from_file(path, words[0], options) if name not in names]
    others = [pair for name, pair in typed if name != "config_file"]
    return [words[0], *(word for pair in (*chosen, *others) for word in pair)]


def _from_file(
    path: Path, command: str, options: dict[str, Any]
) -> Iterable[tuple[str, list[str]]]:
    """The options that a file gives, each with its words."""
    run = read_json(path) if path.suffix == ".json" else None
    if isinstance(run, dict) and "versions" in run:
        arguments = run.get("arguments")
        if not isinstance(arguments, list) or arguments[:1] != [command]:
            raise ValueError(
                f"--config {path}: that run was not begun by `multiexit {command}`, so there are "
                "no options of it"
            )
        pairs = _pairs([str(word) for word in arguments[1:]], options.values())
        return [pair for pair in pairs if pair[0] not in OF_THE_FOLDER]
    pairs = []
    for key, value in _read_yaml(path).items():
        name = str(key).replace("-", "_")
        if name not in options or name in ("config_file", "help"):
            known = [p.opts[0].removeprefix("--") for p in options.values()]
            near = suggest(str(key).replace("_", "-"), known)
            hint = "" if near is None else f": did you mean {near!r}?"
            raise ValueError(f"--config {path}: {command} has no option {str(key)!r}{hint}")
        pairs.append((name, _words(path, options[name], value)))
    return pairs


def _words(path: Path, option: Any, value: Any) -> list[str]:
    """An option's value as it would be typed."""
    opt = option.opts[0]
    if option.is_flag:
        if value not in ("true", "false"):
            raise ValueError(f"--config {path}: {opt[2:]} is true or false, got {value!r}")
        return [opt] if value == "true" else option.secondary_opts[:1]
    if option.multiple and isinstance(value, dict):
        value = [f"{name}={part}" for name, part in value.items()]
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str) for part in parts) or not parts:
        raise ValueError(f"--config {path}: can't read {opt[2:]}: write a value or a list of them")
    return [f"{opt}={part}" for part in parts] if option.multiple else [f"{opt}={','.join(parts)}"]


def _pairs(words: Sequence[str], options: Iterable[Any]) -> list[tuple[str, list[str]]]:
    """Words by option: its name in Python, and it with its value; "" for what is none."""
    by_opt = {opt: p for p in options for opt in (*p.opts, *p.secondary_opts)}
    pairs: list[tuple[str, list[str]]] = []
    awaits = False
    for word in words:
        if awaits:
            pairs[-1][1].append(word)
            awaits = False
            continue
        opt, equals, _ = word.partition("=")
        option = by_opt.get(opt)
        pairs.append(("" if option is None else option.name, [word]))
        awaits = option is not None and not equals and not option.is_flag
    return pairs


def _read_yaml(path: Path) -> dict[Any, Any]:
    """A table whose values are words, lists or tables of them, as they are written."""
    import yaml

    class Loader(yaml.BaseLoader):
        """Words stay as they are written; what comes twice is refused."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key) for key, _ in node.value]
            twice = [key for key in keys if keys.count(key) > 1]
            if twice:
                raise yaml.YAMLError(f"{twice[0]!r} is there twice")
            return super().construct_mapping(node, deep)

    regular_file(path)
    if path.stat().st_size > LARGEST:
        raise ValueError(f"--config {path} has {path.stat().st_size:,} bytes, too many for options")
    try:
        table = yaml.load(path.read_bytes().decode("utf-8-sig"), Loader)  # makes words, no objects
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, TypeError) as error:
        raise ValueError(f"--config {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(table, dict):
        raise ValueError(f"--config {path} holds no options: write NAME: VALUE, one a line")
    return table
