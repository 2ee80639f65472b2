"""`multiexit predict` on lines of text and on image files: an answer for each."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from multiexit.cli.placing import classified
from multiexit.cli.predicting import network_of
from multiexit_runner.answering import parts, text_of, written
from multiexit_runner.pictures import upright
from multiexit_runner.tagging import words_of


def answers(
    classify: Any, values: Iterable[str], batch_size: int, all_scores: bool
) -> Iterator[dict[str, Any]]:
    """Answer lines of text, or image files, in their order; of pairs of texts a tab is between.

    How many are read together, `multiexit_runner.answering.parts` says.

    Args:
        classify: the classifier of a model or of an export.
        values: lines, or names of image files.
        batch_size: rows that go through the model together, at most.
        all_scores: the probability of each class too.

    Returns:
        For each, plain data: the text or file, and its exit and answer; or under `"error"` why it
        can't be read.

    Raises:
        ValueError: scores of a model without classes; a first line that is a row in JSON; what
            reading the lines raises, behind the answers to those before.
    """
    network = network_of(classify)
    problem, images = network.problem, classify.kind == "image"
    if all_scores and problem not in ("classification", "multi-label"):
        raise ValueError(f"all_scores=True is not for {problem}: leave it")
    name, read = ("file" if images else "text"), 0
    for part, error in parts(values, classify.kind, batch_size):
        places = part if images else [f"line {read + i}" for i in range(1, len(part) + 1)]
        if part and not read and not images:
            _check_no_row(classify, part[0], places[0])
            _check_no_names(network, part[0], places[0])
        ready = [_ready(classify, network, *each) for each in zip(part, places, strict=True)]
        read += len(part)
        usable = [row for row, (_, wrong) in enumerate(ready) if not wrong]
        inputs, where = [ready[row][0] for row in usable], [places[row] for row in usable]
        answered = iter(classified(classify, inputs, where, batch_size))
        for value, (_, wrong) in zip(part, ready, strict=True):
            said = {"error": wrong} if wrong else _plain(next(answered), problem, all_scores)
            yield {name: value, **said}
        if error is not None:
            raise error


def prepared(classify: Any, line: str, place: str, names: bool = True) -> Any:
    """What a classifier reads of a line.

    Args:
        classify: the classifier.
        line: of text.
        place: of the line, for messages.
        names: whether the command has options that name a table's columns.

    Raises:
        ValueError: an empty line; a row in JSON; of pairs, a line without a tab, or with several.
    """
    _check_no_row(classify, line, place, names)
    if classify.tags:
        return words_of(line, place)
    if not classify.paired:
        return text_of(line, False, place)[0]
    if (tabs := line.count("\t")) != 1:
        how = "its columns named by --text and --text-pair" if names else "training's columns"
        table = f", or a table with {how}" if tabs else ""
        raise ValueError(
            f"{place}: this model reads sentence pairs, one tab between them{table}; got "
            f"{line!r:.80}"
        )
    return text_of(tuple(line.split("\t")), True, place)


def _check_no_row(classify: Any, line: str, place: str, names: bool = True) -> None:
    """Refuse a line that is an object in JSON, a row of a table, by a ValueError."""
    if not line.lstrip().startswith("{"):
        return
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return
    option = "--text KEY --text-pair KEY" if classify.paired else "--text KEY"
    stdin = f"on stdin name what is read of it, {option}; " if names else ""
    raise ValueError(
        f"{place}: a row in JSON, {line!r:.80}: {stdin}a file of such rows is to be called .jsonl"
    )


def _check_no_names(network: Any, line: str, place: str) -> None:
    """Refuse a line that names the columns of training, as a table's first one does.

    A text may begin with a column's name: the label's, or the pair's second, is to be there too,
    all between marks of one kind, without white space.
    """
    trained_on = network.preprocessing.get("data") or {}
    first, second = trained_on.get("text"), trained_on.get("text_pair")
    names = {first, second} if second else {first, *(trained_on.get("label") or ())}
    marks = {*line} & {*",;|\t"}
    if first is None or len(marks) != 1:
        return
    cells = [cell.strip('"') for cell in line.split(marks.pop())]
    if names <= {*cells} and all(cell == cell.strip() for cell in cells):
        raise ValueError(
            f"{place} names columns of training, {line!r:.80}: give a table as a file, .csv or .tsv"
        )


def _ready(classify: Any, network: Any, value: str, place: str) -> tuple[Any, str]:
    """What the classifier reads of a line or file, or why it can't be read."""
    try:
        if classify.kind == "image":
            return upright(value, network.preprocessing), ""
        return prepared(classify, value, place), ""
    except ValueError as error:
        return None, str(error)


def _plain(answer: dict[str, Any], problem: str, all_scores: bool) -> dict[str, Any]:
    """An answer as it is printed."""
    answer = written(answer)
    said = {"exit": answer["exit"], "layers": answer["layers"]}
    if problem == "classification":
        said |= {"label": answer["label"], "score": answer["score"]}
    elif problem == "multi-label":
        said |= {"labels": answer["labels"]}
    else:
        return {**said, **answer}
    if all_scores or problem == "multi-label":
        scores = answer["scores"]
        names = scores if all_scores else answer["labels"]
        said["scores"] = {name: scores[name] for name in names}
    return said
