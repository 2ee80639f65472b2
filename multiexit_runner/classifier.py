"""Texts or images in, labels and probabilities out, without torch.

Letters: B batch rows, T tokens, C classes.
"""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from multiexit_runner import answering, choosing, pictures, tagging, tokenizing
from multiexit_runner.answering import Answer, Encoded
from multiexit_runner.folder import read_folder
from multiexit_runner.inputs import Arrays
from multiexit_runner.runner import Runner
from multiexit_runner.tokenizing import ANSWER_MASK, FIELDS
from multiexit_runner.turning import turned
from multiexit_runner.user_line import user_level

Words = list[int | None]
"""The word that each token answers for."""


class Classifier:
    """`multiexit.Classifier` of an exported network: the same inputs, and the same answers.

    It needs `tokenizers` for texts and Pillow for images. What is in an answer is a table there.

    Args:
        runner: of the export.
        tokenizer: of `tokenizers`, which cuts and pads as training did, where texts are read.
        policy: other numbers for the export's policy, in all calls that don't give their own.

    Raises:
        ValueError: an export that doesn't say how its inputs are made or reads others, text without
            a tokenizer that pads, or a policy that the graphs don't hold.

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

    def __init__(self, runner: Runner, tokenizer: Any = None, policy: Any = None):
        self.runner, self.tokenizer = turned(runner, policy), tokenizer
        self.tags = runner.problem == "token-classification"
        if not self.tags:
            answering.check_problem(runner.problem)
        self.kind: str = runner.preprocessing.get("kind") or (
            "text" if tokenizer is not None else ""
        )
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
            if others := [name for name in inputs if name not in (*FIELDS, ANSWER_MASK)]:
                raise ValueError(f"the network reads {others}, which a tokenizer doesn't give")
            if self.tags and ANSWER_MASK not in inputs:
                raise ValueError(
                    "these graphs wait for every token, and words are answered by their first: "
                    f"export again, with tokenizer= or with an {ANSWER_MASK} in the rows"
                )
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
        policy: Any = None,
        backend: str = "onnxruntime",
    ) -> "Classifier":
        """Load an export, with its tokenizer where it reads text.

        Args:
            folder: that `multiexit.export` wrote; text with `tokenizer=`.
            threads, providers: as for `Runner`.
            policy: as for the class.
            backend: as for `Runner`.

        Raises:
            ValueError: what `Runner` refuses; no tokenizer that can be read without transformers.
        """
        runner = Runner(folder, threads, providers, backend=backend)
        export, tokenizer = read_folder(folder), None
        kind = runner.preprocessing.get("kind")
        if kind == "text" or (kind is None and tokenizing.TOKENIZER in export.sums):
            tokenizer = tokenizing.load(export, runner.preprocessing)
        return cls(runner, tokenizer, policy)

    def __call__(
        self,
        inputs: Any,
        *,
        policy: Any = None,
        speedup: float | None = None,
        max_loss: float | None = None,
        milliseconds: float | None = None,
        top_k: int | None = None,
        batch_size: int = 32,
    ) -> Answer | list[Answer] | Iterator[Answer]:
        """Answer one input, a list of them, or a generator, as `multiexit.Classifier` does.

        Args:
            inputs: texts, pairs, words or images.
            policy: other numbers for the export's policy, which the graphs hold: as
                `"max-prob=0.8"`, as `{"threshold": 0.8}`, or as an exit policy of `multiexit`.
            speedup, max_loss: in place of a policy, one target, for which a setting is chosen from
                the calibration table that was exported with the model.
            milliseconds: is refused: how long a batch takes is not in an export.
            top_k: how many classes `scores` holds; None is all.
            batch_size: inputs that go through a graph together, at most.

        Raises:
            ValueError: an input that can't be read, by its position; another policy, or a number
                that is fixed in the graphs; a target without a table, or one that no setting
                reaches; a `top_k` or `batch_size` that won't do.
        """
        batch_size = answering.check_batch(batch_size)
        classes = self.runner.settings["num_classes"]
        top_k = answering.check_top(top_k, self.runner.problem, classes)
        if milliseconds is not None:
            raise ValueError(
                f"milliseconds={milliseconds!r:.80} is for a model in torch, which has a latency "
                "table; of an export give speedup= or max_loss="
            )
        target = choosing.wanted(policy, speedup=speedup, max_loss=max_loss)
        runner = turned(self.runner, policy if target is None else self._chosen(target))
        respond = partial(self._respond, runner, top_k, batch_size)
        check = answering.check_image if self.kind == "image" else self._text
        prepare = self._image if self.kind == "image" else self._text
        return answering.answers(inputs, check, prepare, respond, self.kind, batch_size)

    def encode(self, item: Any, place: int) -> Encoded:
        """Make one input ready for whoever runs the network exit by exit.

        Args:
            item: a text, pair, words or image.
            place: of it among the inputs, for the message.

        Raises:
            ValueError: an input that can't be read.
        """
        where = f"inputs[{place}]"
        if self.kind == "image":
            return Encoded({next(iter(self.runner.settings["inputs"])): self._image(item, where)})
        row = self._text(item, where)
        arrays, words = self._batch([row], place)
        tokens = len(next(iter(arrays.values()))[0])
        cut = tokens == (self.tokenizer.truncation or {}).get("max_length")
        named = (row, words[0]) if self.tags else None
        return Encoded({name: array[0] for name, array in arrays.items()}, cut, named)

    def say(self, logits_C: np.ndarray, exit: int, encoded: Encoded, top_k: int) -> Answer:
        """What an input's logits say.

        Args:
            logits_C: of the exit where it left, [C], or of tokens [T, C].
            exit: which that was.
            encoded: the input.
            top_k: how many classes `scores` holds.
        """
        runner = self.runner
        if encoded.words is not None:
            words, word_T = encoded.words
            said = tagging.tagged(logits_C, words, word_T, runner.labels)
        else:
            said = answering.answer_of(logits_C, runner.problem, runner.labels, top_k)
        return {**said, "exit": exit, "layers": runner.settings["exits"][exit] + 1}

    def _chosen(self, target: tuple[str, float]) -> dict[str, Any]:
        """The setting of the export's calibration table that serves a target."""
        table = self.runner.settings["calibration"]
        if table is None:
            why = choosing.NO_TABLE.format(again=", and export again")
            raise ValueError(f"{target[0]}={target[1]:g}: {why}")
        return table["settings"][choosing.choose(table, target)]["policy"]

    def _text(self, item: Any, where: str) -> Any:
        if self.tags:
            return tagging.words_of(item, where)
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
        place = 0
        words_BT = [word_T for _, words in batches for word_T in words]
        try:
            arrays = [named for named, _ in batches]
            for answer in runner.stream(arrays, batch_size, answering.WINDOWS[self.kind]):
                rows_of = zip(answer.logits_BC, answer.exit_B.tolist(), strict=True)
                for logits_C, exit in rows_of:
                    words = (rows[place], words_BT[place]) if self.tags else None
                    place += 1
                    yield self.say(logits_C, exit, Encoded({}, words=words), top_k)
        except ValueError as error:
            raise ValueError(f"inputs[{first}] and behind, as a stream: {error}") from error

    def _batch(self, rows: Sequence[Any], first: int) -> tuple[Arrays, list[Words]]:
        """Inputs by name, and where words are answered which word each token answers for.

        The first row stood at this place.
        """
        specs = self.runner.settings["inputs"]
        if self.kind == "image":
            return {next(iter(specs)): np.stack(list(rows))}, []
        if self.tags:
            encoded = self.tokenizer.encode_batch(rows, is_pretokenized=True)
        else:
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
                    stacklevel=user_level(),
                )
        words = [tagging.first_tokens(row.word_ids) for row in encoded] if self.tags else []
        columns: dict[str, Any] = {
            name: [getattr(row, field) for row in encoded] for name, field in FIELDS.items()
        }
        columns[ANSWER_MASK] = [[word is not None for word in word_T] for word_T in words]
        arrays = {name: np.array(columns[name], spec["dtype"]) for name, spec in specs.items()}
        return arrays, words
