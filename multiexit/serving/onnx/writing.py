"""`multiexit.export`: graphs, settings and checksums, checked and then put in their place.

Letters: B batch rows, T tokens.
"""

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from multiexit import policies, problems
from multiexit.arguments import check_share
from multiexit.data.batches import in_order, map_tensors, unpack_inputs
from multiexit.files.paths import check_new, user_path
from multiexit.files.writing import whole_folder
from multiexit.model import exit_loop
from multiexit.model.model import MultiExitModel
from multiexit.model.settings import without_places
from multiexit.policies import CalibrationTable, ExitPolicy
from multiexit.policies.numbers import Known
from multiexit.serving.onnx.inputs import Inputs, inputs_of
from multiexit.serving.onnx.knobs import ranges
from multiexit.serving.onnx.parity import Parity, compare

SIZES = ((1, 1), (2, 7), (5, 16), (9, 24))
"""Rows and tokens of the random batches that graphs are checked on."""

STORED_ROWS = 4
"""Rows that stay in the folder, with what they must get."""


def export(
    model: MultiExitModel,
    folder: str | Path,
    policy: ExitPolicy | None = None,
    *,
    inputs: Mapping[str, Tensor] | None = None,
    tokenizer: Any = None,
    rows: Dataset[Any] | Iterable[Any] | None = None,
    int8: bool = False,
    target: str = "auto",
    agreement: float = 0.95,
    calibrate: Callable[[Any], CalibrationTable | None] = lambda runner: None,
    notes: Callable[[str], None] = lambda note: None,
) -> Parity:
    """Write a model and its policy as ONNX graphs, one per exit, for `multiexit_runner.Runner`.

    A graph is the stages up to its exit, the head and the policy's step, whatever the policy. The
    graphs are compared with the model on random inputs of several sizes, and one row at a time,
    before the folder appears. A few rows stay in the folder with the answers they must get: the
    `Runner` runs them when it is made.

    Args:
        model: in evaluation mode, in float32.
        folder: must not exist yet.
        policy: by default the model's own. Its numbers can be turned where the graphs run.
        inputs: one batch by name, if the graphs are to take others than the backbone's example
            has. With an `attention_mask` [B, T] there may be any number of tokens; all other
            sizes but B are fixed. Where tokens are classified an `answer_mask` in it, or in the
            `rows`, becomes an input, and with a `tokenizer` alone it does too; without one all real
            tokens are asked for.
        tokenizer: saved with it; says which inputs there are.
        rows: a data set, or an iterable of batches, to compare on too; the first 4 of them are
            kept in the folder (else 4 that are drawn at random).
        int8: 8-bit integers, for CPUs: of a backbone with linear layers their products, of one
            without them its convolutions, calibrated on the first 256 of `rows`, which it needs.
            Answers then differ a little: on the `rows`, if there are any, they must be the same for
            a share of at least `agreement`, in batches and one row at a time. A row's answer is the
            same in any batch. The policy's certificate, which is of the float model, isn't carried
            over.
        target: of int8, the CPUs it is for: `"auto"` is right on any; `"vnni"` and `"arm64"` round
            weights a little finer, at the same speed, and are right on such CPUs alone; `"avx2"`
            and `"avx512"` are what `"auto"` is.
        agreement: that share; counts for int8 alone.
        calibrate: makes a calibration table of the graphs' runner, to be kept in place of the
            model's; None keeps the model's, in int8 without its bounds.
        notes: is told how far it is, such as `print`.

    Returns:
        How the graphs compare with the model: on `rows`, or else on random inputs.

    Raises:
        ValueError: a folder that exists; no policy, or one that doesn't fit; train mode, or
            another precision; code that can't be traced; graphs that don't say what the model
            says. No folder is left then.

    Example:
        >>> import tempfile, torch, multiexit as mx
        >>> backbone = mx.wrap(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)))
        >>> model = mx.MultiExitModel(backbone, num_classes=2).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     mx.export(model, f"{folder}/exported", mx.MaxProb(0.9)).same_exit
        1.0
    """
    folder = user_path(folder)
    policy = model.policy if policy is None else policy
    _check_export(model, folder, policy, int8, target, agreement, rows is not None)
    from multiexit.serving.onnx import graphs, int8_convolutions
    from multiexit.serving.onnx.int8 import TARGETS, has_products, quantise
    from multiexit_runner import Runner
    from multiexit_runner.folder import ROWS
    from multiexit_runner.rows import to_bytes
    from multiexit_runner.settings import without_bounds

    assert policy is not None
    if int8:
        policy = replace(policy)  # without its certificate, which is of the float model
    if next(model.parameters()).device.type != "cpu":
        model = copy.deepcopy(model).cpu()
    batches = None if rows is None else _batches(model, rows)
    spec = inputs_of(model, batches[0] if inputs is None and batches else inputs, tokenizer)
    tokens = min(11, spec.max_tokens or 11)
    generator = torch.Generator().manual_seed(0)
    examples = [spec.draw(5, tokens, generator), spec.draw(3, max(1, tokens - 4), generator)]
    random_batches = [spec.draw(*size, generator) for size in (*SIZES, (1, spec.max_tokens or 1))]

    with whole_folder(folder) as partial:
        segments, numbers = graphs.write(model, policy, examples, partial, notes)
        if int8 and has_products(model.backbone):
            for segment in segments:
                quantise(partial / segment.file, target)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        K = problems.classes_of_decision(model.problem, model.num_classes)
        known = Known(model.num_exits, K)
        settings = _settings(model, policy, spec) | {
            "knobs": numbers,
            "ranges": ranges(policy, numbers, known),
            "scales": {n: [*s] for n, s in policies.scales(policy, known).items() if n in numbers},
            "segments": [segment._asdict() for segment in segments],
            "int8": {"target": target, "machines": TARGETS[target].machines} if int8 else None,
            "calibration": None if model.calibration is None else model.calibration.to_json(),
            "parity": {},
        }
        settings = without_bounds(settings) if int8 else settings
        (partial / ROWS).touch()
        _write_settings(partial, settings)
        if int8 and batches is not None and not has_products(model.backbone):
            int8_convolutions.quantise(partial, batches, target)
        runner = Runner(partial, threads=torch.get_num_threads(), check=False)
        parity = compare(model, policy, runner, random_batches, exact=not int8)
        if batches is not None:
            parity = compare(model, policy, runner, _told(batches, notes), exact=not int8)
        share = min(parity.same_answer, parity.same_answer_alone)
        if int8 and batches is not None and share < agreement:
            raise ValueError(
                f"in int8, {share:.1%} of the {parity.rows} rows get the model's own answer, and "
                f"{agreement:.1%} must: export without int8, or lower agreement"
            )
        if (table := calibrate(runner)) is not None:
            settings |= {"calibration": table.to_json()}
        stored = {
            name: tensor[:STORED_ROWS]
            for name, tensor in (batches or random_batches[2:])[0].items()
        }
        (partial / ROWS).write_bytes(to_bytes(_stored_rows(model, runner, stored)))
        on = "random inputs" if batches is None else "rows"
        _write_settings(partial, settings | {"parity": {"on": on, **parity._asdict()}})
    return parity


def _told(
    batches: Sequence[Mapping[str, Tensor]], notes: Callable[[str], None]
) -> Iterator[Mapping[str, Tensor]]:
    """Batches, one after the other, and how many of them are through."""
    for done, batch in enumerate(batches):
        yield batch
        notes(f"{done + 1} of {len(batches)} batches of rows are compared")


def _stored_rows(model: MultiExitModel, runner: Any, batch: Mapping[str, Tensor]) -> Any:
    """A batch with the model's logits and those of its graphs."""
    from multiexit_runner.rows import Rows

    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    with torch.no_grad():
        float_MBC = model(**batch).numpy()
    return Rows(arrays, float_MBC, runner.forward(**arrays))


def _settings(model: MultiExitModel, policy: ExitPolicy, spec: Inputs) -> dict[str, Any]:
    from multiexit._version import __version__
    from multiexit_runner.settings import FORMAT

    return {
        "format": FORMAT,
        "versions": {"multiexit": __version__, "torch": torch.__version__},
        "num_classes": model.num_classes,
        "problem": model.problem,
        "exits": list(model.exits),
        "labels": model.labels,
        "preprocessing": without_places(model.preprocessing),
        "inputs": spec.to_json(),
        "max_tokens": spec.max_tokens,
        "policy": policies.to_json(policy),
    }


def _write_settings(folder: Path, settings: dict[str, Any]) -> None:
    from multiexit_runner.folder import SETTINGS, seal

    (folder / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")
    seal(folder)


def _batches(model: MultiExitModel, rows: Any) -> list[dict[str, Tensor]]:
    """Batches of a data set, by the names of the model's inputs."""
    names = list(model.backbone.example_inputs())
    if isinstance(rows, Tensor | Mapping):
        raise ValueError(
            f"rows is a data set or a list of batches, such as [batch]; got {type(rows).__name__}"
        )
    unpacked = [unpack_inputs(batch) for batch in in_order(rows, 32)]
    filled = [(args, inputs) for args, inputs in unpacked if exit_loop.num_rows(args, inputs)]
    if not filled:
        raise ValueError("no rows to compare the exported graphs on: the data set is empty")
    batches = [{**dict(zip(names, args, strict=False)), **inputs} for args, inputs in filled]
    return map_tensors(batches, Tensor.detach)


def _check_export(
    model: MultiExitModel,
    folder: Path,
    policy: ExitPolicy | None,
    int8: bool,
    target: str,
    agreement: float,
    rows: bool,
) -> None:
    check_new(folder)
    if not isinstance(policy, ExitPolicy):
        raise ValueError(
            "an export needs a policy, such as Patience(4): the model has none of its own; got "
            f"{type(policy).__name__}"
        )
    policies.check(policy, model.num_exits, model.num_classes, model.problem)
    policies.check_saved(policy)
    exit_loop.check_evaluating(model)
    other = {p.dtype for p in model.parameters() if p.dtype != torch.float32}
    if other:
        raise ValueError(
            f"this model is in {other.pop()}: call model.float() first (and save it again)"
        )
    check_share("agreement", agreement, "[0, 1]")
    if int8:
        from multiexit.serving.onnx.int8 import check

        check(model.backbone, target, rows)
    elif target != "auto":
        raise ValueError(f"target={target!r} is for int8 alone: pass int8=True, or leave it out")
    try:
        import onnx
        import onnxruntime
        import onnxscript
    except ImportError as error:
        raise ValueError(
            f"export needs {error.name}: pip install 'multiexit-torch[onnx]'"
        ) from error
    del onnx, onnxruntime, onnxscript
