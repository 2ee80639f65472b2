"""Commands that answer, or make a model ready for it elsewhere."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from multiexit.cli import typed
from multiexit.cli.row_files import as_json
from multiexit.cli.row_options import DataDir, ModelRows
from multiexit.cli.words import Model, ModelOrExport, Policy


def predict(
    model: ModelOrExport,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(help="image files or folders; for text one file of lines, or stdin"),
    ] = None,
    policy: Policy = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="rows that go through together, at most")
    ] = 32,
    text: Annotated[str | None, typer.Option(help="of a table: the column of texts")] = None,
    text_pair: Annotated[
        str | None, typer.Option(help="of a table: the column of second texts")
    ] = None,
    image: Annotated[str | None, typer.Option(help="of a table: the column of image files")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="of a table: a .csv, .tsv, .jsonl or .parquet file, which is replaced where it is "
            "there; default stdout"
        ),
    ] = None,
    all_scores: Annotated[
        bool, typer.Option("--all-scores", help="the probability of each class too")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="of a table: leave out rows that can't be used")
    ] = False,
    backend: Annotated[
        str | None,
        typer.Option(
            help="what runs an export: onnxruntime, which is the default, openvino or openvino-bf16"
        ),
    ] = None,
) -> None:
    """Labels, scores and exits for a table, lines of text or image files, in their order.

    A table is a CSV, JSONL or parquet file; a TSV where a column is named or the model was trained
    on columns; and JSON lines on stdin where a column is named.
    Its rows come out with columns added: label, score, exit and layers. The columns that are read
    are those of training where none are named. Killed while it writes a file, the same command
    goes on where it was.

    Otherwise text comes one per line, sentence pairs with a tab between them; for a model of single
    texts the whole line is the text, and a tab in it white space. An image file or a line that
    can't be read, such as an empty one, is one line on stderr; the others are answered, and the
    exit code is 2.

    Examples:

    multiexit predict runs/mine reviews.csv --text review --output answers.csv

    echo "a fine film" | multiexit predict runs/sst2 --policy patience=3

    multiexit predict runs/cifar cat.png dog.png --policy max-prob=0.9

    multiexit predict runs/pets photos
    """
    from multiexit.cli import lines, predicting

    folder = typed.model_folder(model)
    classify = predicting.classifier(folder, policy, backend)
    columns = {"text": text, "text_pair": text_pair, "image": image}
    predicting.check_there(inputs, model, classify.kind, columns)
    if predicting.is_table(inputs, columns, predicting.network_of(classify).preprocessing):
        predicting.predict_table(
            folder, classify, inputs, columns, output, all_scores, skip_bad, batch_size
        )
        return
    for name, value in (("output", output), ("skip_bad", skip_bad)):
        if value:
            raise ValueError(f"{name}={value} is for a table: name its column by --text or --image")
    if classify.kind == "image" and not inputs:
        raise ValueError("give image files to predict")
    values = predicting.images(inputs or []) if classify.kind == "image" else typed.lines(inputs)
    failed = 0
    for answer in lines.answers(classify, values, batch_size, all_scores):
        if "error" in answer:
            failed += 1
            print(f"multiexit: {answer['error']}", file=sys.stderr)
        else:
            print(as_json(answer), flush=True)
    if failed:
        raise typer.Exit(2)


def export(
    model: Model,
    output: Annotated[Path, typer.Argument(help="a folder that doesn't exist yet")],
    policy: Policy = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="8-bit integers, for CPUs; convolutions need --data or --task"),
    ] = False,
    target: Annotated[
        str,
        typer.Option(
            help="CPUs that int8 is for: auto (any), vnni, arm64, avx2, avx512; graphs for vnni "
            "and arm64 round a little finer and are wrong on other CPUs"
        ),
    ] = "auto",
    agreement: Annotated[
        float | None,
        typer.Option(help="share of rows whose answer int8 must leave as it is; 0.95 by default"),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="rows to compare on, and to keep 4 of: a table with training's columns, on which "
            "int8 measures its calibration table too where it has labels, a text file as `predict` "
            "reads it, or an image file; may be repeated"
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="compare on this task's development set")] = None,
    data_dir: DataDir = None,
    triton: Annotated[
        bool, typer.Option("--triton", help="a model repository of Triton Inference Server")
    ] = False,
) -> None:
    """Write a model and its policy as ONNX graphs, to be run by `multiexit_runner` without torch.

    Examples:

    multiexit export runs/mrpc mrpc-onnx --policy max-prob=0.9

    multiexit export runs/mrpc mrpc-int8 --int8 --data pairs.tsv

    multiexit export runs/mrpc mrpc-int8 --int8 --task mrpc --data-dir data

    multiexit export runs/mrpc mrpc --triton
    """
    from multiexit import MultiExitModel
    from multiexit.cli import calibrating, next_steps, predicting, sources, table_inputs
    from multiexit.cli.noted import now_and_then
    from multiexit.data.own.notes import say
    from multiexit.files.json_files import read_json
    from multiexit.policies import check, parse
    from multiexit.policies.registry import policy_name
    from multiexit.serving.onnx import export as export_onnx
    from multiexit.serving.onnx.int8 import TARGETS
    from multiexit.serving.onnx.triton import check_name, triton_repository
    from multiexit_runner.folder import SETTINGS

    if data and (task is not None or data_dir is not None):
        raise ValueError("--data names the rows: leave out --task and --data-dir")
    if agreement is not None and not (int8 and (data or task or data_dir)):
        raise ValueError("--agreement is measured with --int8 on rows: give --data or --task too")
    if triton:
        check_name(output)
    typed.new_folder("--output", output)
    model = typed.model_folder(model)
    exit_policy = parse(policy) if policy else None
    reads = (model / "tokenizer_config.json").is_file()
    reader = typed.tokenizer(model) if reads else None
    loaded, rows, task_data = MultiExitModel.from_pretrained(model), None, None
    table = predicting.is_table(data, {}, loaded.preprocessing)
    if table and len(data or ()) > 1:
        raise ValueError(f"--data: one table at a time; got {len(data or ())} files")
    labelled = int8 and table and table_inputs.has_labels(Path((data or [""])[0]), loaded)
    if task is not None or data_dir is not None or labelled:
        chosen = ModelRows(task=task, data_dir=data_dir, data=data[0] if data else None)
        try:
            task_data = sources.rows_for(loaded.to(typed.device()), model, chosen)
            rows = next(iter(task_data.sets.values()))
        except ValueError as error:
            if not labelled:
                raise
            say(f"the table's labels aren't used: {table_inputs.without_skipping(error)}")
    if data and rows is None:
        rows = _rows(loaded, reader, data, table)
    if exit_policy is not None:
        check(exit_policy, loaded.num_exits, loaded.num_classes, loaded.problem)
    share = 0.95 if agreement is None else agreement
    compared = "random inputs" if rows is None else "the rows given"
    print(
        f"multiexit: {loaded.num_exits} graphs are traced, then compared with the model on "
        f"{compared}",
        file=sys.stderr,
    )
    held, notes = exit_policy or loaded.policy, now_and_then()
    options: Any = {"int8": int8, "target": target, "agreement": share, "notes": notes}
    setting = None if loaded.calibration is None else loaded.calibration.near_full().policy
    is_turned = (
        setting is not None
        and type(setting) is type(held)
        and not any(
            isinstance(number, tuple)
            for number in vars(held).values()  # one for each exit
        )
    )
    if int8 and held is not None and is_turned:
        options["calibrate"] = calibrating.measured(
            loaded, lambda: task_data or sources.load(model, ModelRows())[1], held, notes
        )
    with tempfile.TemporaryDirectory() as place:
        written = Path(place) / "export" if triton else output
        parity = export_onnx(loaded, written, exit_policy, tokenizer=reader, rows=rows, **options)
        kept = read_json(written / SETTINGS)["calibration"]
        if triton:
            triton_repository(written, output)
    print(
        f"{output}: {loaded.num_exits} graphs. Over {parity.rows} "
        f"{'random inputs' if rows is None else 'rows'} logits differ from the model's by at most "
        f"{parity.largest_difference:.1g}; {parity.same_exit:.1%} leave at the same exit, "
        f"{parity.same_answer:.1%} get the same answer, {parity.same_answer_alone:.1%} of those "
        "run one at a time"
    )
    if held is not None:
        print(f"It stops by {policy_name(held)}")
    if setting is not None and not is_turned:
        other = policy_name(setting)
        print(
            f"The calibration table's settings are such as {other}, so this export has no "
            f"targets, such as speedup= or --target-ms: for these export with --policy {other}"
        )
    if int8:
        print(f"int8 for {TARGETS[target].machines}")
        if held is not None and held.certificate is not None:
            print(f"The certificate of {policy_name(held)} is the float model's, and was left out")
    if triton:
        print(next_steps.after_triton(output))
    elif loaded.preprocessing.get("kind"):
        certificate = None if held is None or int8 else held.certificate
        print(next_steps.after_export(output, kept if is_turned else None, certificate))


def truncate(
    model: Model,
    exit: Annotated[int, typer.Argument(help="where to cut, counted from 0")],
    output: Annotated[Path, typer.Option(help="a folder that doesn't exist yet")],
) -> None:
    """Cut a model for good behind one exit, and write it as a network of transformers or timm.

    What is written has fewer layers and no exits: `AutoModelForSequenceClassification` and every
    tool around it load it, or timm.create_model("local-dir:FOLDER", pretrained=True). An exit that
    no class of these libraries can be is refused.

    Examples:

    multiexit truncate runs/mrpc 5 --output mrpc-6-layers
    """
    from multiexit import MultiExitModel
    from multiexit.files.writing import whole_folder
    from multiexit.model.folder import save_tokenizer
    from multiexit.model.truncation import NoClassError, library_network, save_network

    typed.new_folder("--output", output)
    folder = typed.model_folder(model)
    reads = (folder / "tokenizer_config.json").is_file()
    reader = typed.tokenizer(folder) if reads else None
    loaded = MultiExitModel.from_pretrained(folder)
    try:
        network = library_network(loaded, exit)
    except NoClassError as error:
        raise ValueError(
            f"{error}. Python cuts it as a module, multiexit.truncate(model, {exit}), or keeps it "
            f"as a multi-exit model, multiexit.keep_exits(model, [{exit}])"
        ) from error
    if reader is not None and network.config.pad_token_id is None:  # by which a decoder pools
        network.config.pad_token_id = reader.pad_token_id
    with whole_folder(output) as new:
        save_network(network, new)
        if reader is not None:
            save_tokenizer(reader, new)
    kind, stages = type(network).__name__, loaded.exits[exit] + 1
    print(f"{output}: a {kind} of {stages} of {loaded.backbone.num_stages} stages")
    if reader is None and loaded.preprocessing.get("kind") == "text":
        print(f"{folder} has no tokenizer: save one, tokenizer.save_pretrained({str(output)!r})")


def _rows(model: Any, reader: Any, files: list[str], table: bool) -> Any:
    """The rows in files, or in one table, as `predict` reads them."""
    import torch

    from multiexit.cli import table_inputs
    from multiexit.cli.lines import prepared
    from multiexit.data import image_files
    from multiexit.data.order import chunks
    from multiexit.policies import FixedExit
    from multiexit.serving.classifier import Classifier

    preprocessing = model.preprocessing
    kind = preprocessing.get("kind")
    if kind not in ("image", "text") or (kind == "text" and reader is None):
        raise ValueError(
            "this model doesn't say how --data is made ready: set model.preprocessing before "
            "saving (see the documentation on saving), and save a tokenizer with it"
        )
    classify = Classifier(model, reader, FixedExit(model.num_exits - 1))
    values: Any = table_inputs.inputs_in(Path(files[0]), classify) if table else files
    if kind == "image":
        return [
            torch.stack([image_files.read(image, preprocessing) for image in images])
            for images in chunks(values, 32)
        ]
    if not table:
        numbered = enumerate(typed.lines(files), 1)
        values = [prepared(classify, line, f"line {n}", names=False) for n, line in numbered]
    return classify.tokenised(values)
