"""Texts or images in, labels and probabilities out, without torch.

Letters: B batch rows, T tokens, C classes.
"""

import copy
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from multiexit_runner import answering, pictures
from multiexit_runner.answering import Answer
from multiexit_runner.folder import Folder, read_file, read_folder
from multiexit_runner.inputs import Arrays
from multiexit_runner.runner import Runner

TOKENIZER, TOKENIZER_SETTINGS = "tokenizer.json", "tokenizer_config.json"
FIELDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""What a tokenizer gives, by the network's names."""

POLICIES = {"FixedExit": "fixed"}
"""Policies that are typed otherwise than their class is called."""


class Classifier:
    """`multiexit.Classifier` of an exported network: the same inputs, and the same answers.

    It needs `tokenizers` for texts and Pillow for images. What is in an answer is a table there.

    Args:
        runner: of the export.
        tokenizer: of `tokenizers`, which cuts and pads as training did, where texts are read.

    Raises:
        ValueError: an export that doesn't say how its inputs are made or reads others, text without
            a tokenizer that pads, or a problem whose answers aren't of whole rows.

    Example:
        >>> import tempfile, numpy as np, multiexit as mx
        >>> from multiexit_runner import Classifier
        >>> model = mx.MultiExitModel(mx.cifar_resnet(20), 2, labels=["cat", "dog"]).eval()
        >>> model.preprocessing = {
        ...     "kind": "image", "shape": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     parity = mx.export(model, f"{folder}/exported", mx.FixedExit(1))
        ...     classify = Classifier.from_pretrained(f"{folder}/exported")
        >>> answer = classify(np.zeros((48, 64, 3), np.uint8))
        >>> list(answer), answer["exit"], answer["layers"]
        (['label', 'score', 'scores', 'exit', 'layers'], 1, 2)
    """

    def __init__(self, runner: Runner, tokenizer: Any = None):
        self.runner, self.tokenizer = runner, tokenizer
        answering.check_problem(runner.problem)
        self.kind = runner.preprocessing.get("kind") or ("text" if tokenizer is not None else None)
        self.paired: bool = runner.preprocessing.get("pairs", False)
        inputs = [*runner.settings["inputs"]]
        if self.kind == "image":
            pictures.check(runner.preprocessing)
            shape = ["B", *runner.preprocessing["shape"]]
            if len(inputs) != 1 or runner.settings["inputs"][inputs[0]]["shape"] != shape:
                raise ValueError(f"the network reads {inputs}, and not one image {shape}")
        elif self.kind == "text":
            if tokenizer is None or tokenizer.padding is None:
                raise ValueError(
                    "this network reads texts: give a tokenizer with padding enabled, or load the "
                    "folder by Classifier.from_pretrained"
                )
            if others := [name for name in inputs if name not in FIELDS]:
                raise ValueError(f"the network reads {others}, which a tokenizer doesn't give")
        else:
            raise ValueError(
                "the export doesn't say how its inputs are made: set model.preprocessing to the "
                "training data's, and export again"
            )
        self._told_length = False

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        threads: int | None = None,
        providers: Sequence[Any] | None = None,
    ) -> "Classifier":
        """Load an export, with its tokenizer where it reads text.

        Args:
            folder: that `multiexit.export` wrote; text with `tokenizer=`.
            threads, providers: as for `Runner`.

        Raises:
            ValueError: what `Runner` refuses; no tokenizer that can be read without transformers.
        """
        runner = Runner(folder, threads, providers)
        export, tokenizer = read_folder(folder), None
        kind = runner.preprocessing.get("kind")
        if kind == "text" or (kind is None and (Path(folder) / "tokenizer.json").exists()):
            tokenizer = _tokenizer(export, runner)
        return cls(runner, tokenizer)

    def __call__(
        self,
        inputs: Any,
        *,
        policy: str | Mapping[str, float] | None = None,
        top_k: int | None = None,
        batch_size: int = 32,
    ) -> Answer | list[Answer] | Iterator[Answer]:
        """Answer one input, a list of them, or a generator, as `multiexit.Classifier` does.

        Args:
            inputs: texts, pairs or images.
            policy: other numbers for the export's policy, which the graphs hold: as
                `"max-prob=0.8"` or as `{"threshold": 0.8}`.
            top_k: how many classes `scores` holds; None is all.
            batch_size: inputs that go through a graph together, at most.

        Raises:
            ValueError: an input that can't be read, by its position; another policy, or a number
                that is fixed in the graphs; a `top_k` or `batch_size` that won't do.
        """
        batch_size = answering.check_batch(batch_size)
        classes = self.runner.settings["num_classes"]
        top_k = answering.check_top(top_k, self.runner.problem, classes)
        runner = _turned(self.runner, policy)
        respond = partial(self._respond, runner, top_k, batch_size)
        check = answering.check_image if self.kind == "image" else self._text
        prepare = self._image if self.kind == "image" else self._text
        return answering.answers(inputs, check, prepare, respond, batch_size)

    def _text(self, item: Any, where: str) -> tuple[str, str | None]:
        return answering.text_of(item, self.paired, where)

    def _image(self, item: Any, where: str) -> np.ndarray:
        answering.check_image(item, where)
        try:
            return pictures.read(answering.picture_of(item), self.runner.preprocessing)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def _respond(
        self, runner: Runner, top_k: int, batch_size: int, rows: Sequence[Any], first: int
    ) -> Iterator[Answer]:
        """Answers of prepared inputs, of which the first stood at this place."""
        parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
        starts = range(first, first + len(rows), batch_size)
        batches = [self._batch(part, start) for part, start in zip(parts, starts, strict=True)]
        exits = runner.settings["exits"]
        try:
            for answer in runner.stream(batches, batch_size, answering.WINDOW):
                rows_of = zip(answer.logits_BC, answer.exit_B.tolist(), strict=True)
                for logits_C, exit in rows_of:
                    said = answering.answer_of(logits_C, runner.problem, runner.labels, top_k)
                    yield {**said, "exit": exit, "layers": exits[exit] + 1}
        except ValueError as error:
            raise ValueError(f"inputs[{first}] and behind, as a stream: {error}") from error

    def _batch(self, rows: Sequence[Any], first: int) -> Arrays:
        """Inputs by name; the first stood at this place."""
        specs = self.runner.settings["inputs"]
        if self.kind == "image":
            return {next(iter(specs)): np.stack(list(rows))}
        texts = [text if pair is None else (text, pair) for text, pair in rows]
        encoded = self.tokenizer.encode_batch(texts)
        truncation = self.tokenizer.truncation or {}
        longest = truncation.get("max_length")
        for place, row in enumerate(encoded, first):
            tokens = sum(row.attention_mask)
            if not tokens:
                raise ValueError(f"inputs[{place}] is a text of which the tokenizer makes no token")
            if tokens == longest and not self._told_length:
                self._told_length = True
                warnings.warn(
                    f"inputs[{place}] fills all {longest} tokens that this model reads: what is "
                    "longer is cut there, as in training",
                    stacklevel=2,
                )
        return {
            name: np.array([getattr(row, FIELDS[name]) for row in encoded], spec["dtype"])
            for name, spec in specs.items()
        }


def _tokenizer(folder: Folder, runner: Runner) -> Any:
    """The tokenizer in an export, which cuts and pads as transformers' does."""
    for name in (TOKENIZER, TOKENIZER_SETTINGS):
        if name not in folder.sums:
            raise ValueError(
                f"{folder.path} has no {name}: export with tokenizer=, one of the fast kind, or "
                "give Classifier a tokenizer of your own"
            )
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ValueError("texts need the package tokenizers: pip install tokenizers") from error
    try:
        tokenizer = Tokenizer.from_buffer(read_file(folder, TOKENIZER))
        settings = json.loads(read_file(folder, TOKENIZER_SETTINGS))
        pad = settings["pad_token"]
        pad = pad["content"] if isinstance(pad, dict) else pad
        sides = [settings.get(f"{what}_side", "right") for what in ("truncation", "padding")]
        length = runner.preprocessing.get("max_length", 128)
        tokenizer.enable_truncation(length, strategy="longest_first", direction=sides[0])
        tokenizer.enable_padding(
            direction=sides[1],
            pad_id=tokenizer.token_to_id(pad),
            pad_type_id=settings.get("pad_token_type_id", 0),
            pad_token=pad,
        )
    except Exception as error:  # of the library's Rust, of one kind for all
        raise ValueError(f"{folder.path}: its tokenizer can't be read: {error!r}") from error
    return tokenizer


def _turned(runner: Runner, policy: Any) -> Runner:
    """The runner with other numbers in its policy."""
    if policy is None:
        return runner
    numbers = policy
    if not isinstance(policy, Mapping):
        numbers = _numbers_of(policy, runner.settings["policy"], runner.knobs)
    other = copy.copy(runner)
    other.set(**numbers)
    return other


def _numbers_of(text: Any, policy: Mapping[str, Any], knobs: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a policy that was typed, which must be of the kind that was exported."""
    kind = str(policy.get("class"))
    words = "".join(f"-{c.lower()}" if c.isupper() else c for c in kind).removeprefix("-")
    expected = POLICIES.get(kind, words)
    fields = [name for name in policy if name not in ("class", "certificate")]
    if not isinstance(text, str) or text.partition("=")[0] != expected:
        raise ValueError(
            f"policy={text!r}: these graphs hold the policy {expected}, whose numbers alone can be "
            f"turned, {sorted(knobs)}; for another policy export again"
        )
    values = [value for value in text.partition("=")[2].split(",") if value]
    try:
        numbers = [float(value) for value in values]
    except ValueError as error:
        raise ValueError(f"can't read policy {text!r}: one number for each of {fields}") from error
    if not numbers or len(numbers) > len(fields):
        raise ValueError(f"can't read policy {text!r}: one number for each of {fields}")
    given = dict(zip(fields, numbers, strict=False))
    for name, number in given.items():
        if name not in knobs and policy[name] != number:
            raise ValueError(
                f"policy={text!r}: {name} is fixed in these graphs, as {policy[name]}: export again"
            )
    return {name: number for name, number in given.items() if name in knobs}
