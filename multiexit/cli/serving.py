"""Commands that answer, or make a model ready for it elsewhere."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from multiexit import typed
from multiexit.cli.words import DataDir, Model, Policy


def predict(
    model: Model,
    inputs: Annotated[
        list[str] | None, typer.Argument(help="image files; for text one file of lines, or stdin")
    ] = None,
    policy: Policy = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
) -> None:
    """Labels, exits and confidences as JSON lines, in the inputs' order.

    Text comes one per line, sentence pairs with a tab between them. An image file that can't be
    read is one line on stderr; the others are answered, and the exit code is 2.

    Examples:

    echo "a fine film" | multiexit predict runs/sst2/model --policy patience=3

    multiexit predict runs/cifar/model cat.png dog.png --policy max-prob=0.9
    """
    from multiexit import MultiExitModel
    from multiexit.policies import parse
    from multiexit.prediction import predict_images, predict_lines

    loaded = MultiExitModel.from_pretrained(model).to(typed.device())
    chosen = parse(policy) if policy else loaded.policy
    if chosen is None:
        raise ValueError(
            "this model was saved without a policy: give one, e.g. --policy patience=4"
        )
    kind = loaded.preprocessing.get("kind")
    if kind not in ("image", "text"):
        raise ValueError(
            f"{model} doesn't say how its inputs are made: set model.preprocessing before saving "
            "(see the documentation on saving), or predict in Python"
        )
    if kind == "image":
        if not inputs:
            raise ValueError("give image files to predict")
        answers = predict_images(loaded, chosen, [Path(name) for name in inputs], batch_size)
    else:
        reader, lines = typed.tokenizer(model), typed.lines(inputs)
        answers = predict_lines(loaded, chosen, reader, lines, batch_size)
    failed = 0
    for answer in answers:
        if "error" in answer:
            failed += 1
            print(f"multiexit: {answer['error']}", file=sys.stderr)
        else:
            print(_json(answer))
    if failed:
        raise typer.Exit(2)


def _json(answer: dict[str, Any]) -> str:
    """One line; what the terminal's encoding lacks, or is half a letter, is escaped."""
    line = json.dumps(answer, ensure_ascii=False)
    try:
        line.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(answer)
    return line


def export(
    model: Model,
    output: Annotated[Path, typer.Argument(help="a folder that doesn't exist yet")],
    policy: Policy = None,
    int8: Annotated[bool, typer.Option("--int8", help="8-bit integers, for CPUs")] = False,
    agreement: Annotated[
        float, typer.Option(help="share of rows whose answer int8 must leave as it is")
    ] = 0.95,
    task: Annotated[
        str | None, typer.Option(help="compare on its development set too, not on random inputs")
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Write a model and its policy as ONNX graphs, to be run by `multiexit_runner` without torch.

    Examples:

    multiexit export runs/mrpc/model mrpc-onnx --policy max-prob=0.9

    multiexit export runs/mrpc/model mrpc-int8 --int8 --task mrpc --data-dir data
    """
    from multiexit import MultiExitModel
    from multiexit import export as write
    from multiexit.policies import parse

    chosen = parse(policy) if policy else None
    rows = None
    if task is None and data_dir is None:
        loaded = MultiExitModel.from_pretrained(model)
    else:
        loaded, data = typed.load(model, task, data_dir)
        rows = next(iter(data.sets.values()))
    reads = (model / "tokenizer_config.json").is_file()
    reader = typed.tokenizer(model) if reads else None
    parity = write(
        loaded, output, chosen, tokenizer=reader, rows=rows, int8=int8, agreement=agreement
    )
    print(
        f"{output}: {loaded.num_exits} graphs. Over {parity.rows} rows logits differ from the "
        f"model's by at most {parity.largest_difference:.1g}; {parity.same_exit:.1%} leave at the "
        f"same exit, {parity.same_answer:.1%} get the same answer"
    )
