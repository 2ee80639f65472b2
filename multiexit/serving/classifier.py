"""`mx.Classifier`: texts or images in, labels and probabilities out.

Letters: B batch rows, C classes.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from multiexit import policies
from multiexit.data import image_files
from multiexit.data.text import TextDataset
from multiexit.model.finite import NotFinite
from multiexit.model.folder import local_folder, of_run
from multiexit.model.latency import check_latency
from multiexit.model.model import MultiExitModel
from multiexit.policies import ExitPolicy, FixedExit
from multiexit.serving import tagging
from multiexit.serving.engine import Engine
from multiexit_runner import answering, choosing
from multiexit_runner.answering import Answer, Encoded
from multiexit_runner.classifier import Classifier as ExportClassifier
from multiexit_runner.folder import SETTINGS as EXPORT
from multiexit_runner.tagging import tagged, words_of
from multiexit_runner.user_line import user_level

ENGINES = 4
"""Policies whose engines are kept."""


class Classifier:
    """Answers texts or images with a trained model, early where its policy allows.

    Batches, padding, the order and the device are seen to inside; an answer is the same in any
    batch, but for how sums are rounded.

    An answer is a dict of plain values:

    | problem | keys |
    |---|---|
    | classification | `label`, `score` (its probability), `scores` (of all classes, best first) |
    | multi-label | `labels` (that hold: probability above ½), `scores` |
    | regression | `value`, or `values` where there are several |
    | embedding | `vector`, of length 1 |
    | token-classification | `words`, their `labels` and `scores`; None of a word without a token |
    | all | `exit`, counted from 0, and `layers`, the stages that were run |

    Args:
        model: in evaluation mode, or an `Engine` of one.
        tokenizer: of transformers, where the model reads text.
        policy: or its text form, such as `"max-prob=0.9"`; None is the model's own. Without any, a
            warning says once that each input runs through all layers.

    Raises:
        ValueError: a policy that doesn't fit, a model that doesn't say how its inputs are made,
            text without a tokenizer, or a problem other than these.

    Example:
        >>> import numpy as np, multiexit as mx
        >>> model = mx.MultiExitModel(mx.cifar_resnet(20), 2, labels=["cat", "dog"]).eval()
        >>> model.preprocessing = {
        ...     "kind": "image", "shape": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
        >>> classify = mx.Classifier(model, policy="fixed=1")
        >>> answer = classify(np.zeros((48, 64, 3), np.uint8))
        >>> list(answer), answer["exit"], answer["layers"]
        (['label', 'score', 'scores', 'exit', 'layers'], 1, 2)
    """

    def __init__(
        self,
        model: MultiExitModel | Engine,
        tokenizer: Any = None,
        policy: ExitPolicy | str | None = None,
    ):
        self._engines = [model] if isinstance(model, Engine) else []
        self.model = model.original if isinstance(model, Engine) else model
        self.tags = self.model.problem == "token-classification"
        if not self.tags:
            answering.check_problem(self.model.problem)
        preprocessing = self.model.preprocessing
        self.kind: str = preprocessing.get("kind") or ("text" if tokenizer is not None else "")
        if self.kind not in ("text", "image"):
            raise ValueError(
                "the model doesn't say how its inputs are made: set model.preprocessing to the "
                "training data's, or give a tokenizer"
            )
        if self.kind == "image":
            image_files.check(preprocessing)
        elif tokenizer is None:
            raise ValueError("this model reads texts: give its tokenizer too")
        self.tokenizer: Any = tokenizer
        self.paired: bool = preprocessing.get("pairs", False)
        self.policy = self._engines[0].policy if self._engines else self.model.policy
        if policy is not None:
            self.policy = self._engine(policy).policy
        self._told_length = False

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        policy: ExitPolicy | str | None = None,
        device: str | torch.device | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> "Classifier | ExportClassifier":
        """Load a model, with its tokenizer where it reads text.

        Args:
            folder: that `save_pretrained`, a training run or `multiexit.export` wrote, or a
                repository of the hub.
            policy: as for the class.
            device: None is the GPU, if there is one; an export runs on the CPU.
            revision, token: of a repository of the hub.

        Returns:
            The classifier; of an export `multiexit_runner.Classifier`, which takes the same inputs
            and gives the same answers by its graphs.

        Raises:
            ValueError: no such folder, no tokenizer in it, or what the class refuses.
        """
        from multiexit.backbones.transformers.configs import load_tokenizer

        place = of_run(local_folder(folder, revision, token))
        if (place / EXPORT).exists():
            if torch.device(device or "cpu").type != "cpu":
                raise ValueError(
                    f"{folder} is an export, which runs on the CPU here: leave device={device!r}, "
                    "or give a backend or providers to multiexit_runner.Classifier.from_pretrained"
                )
            return ExportClassifier.from_pretrained(place, policy=policy)
        model = MultiExitModel.from_pretrained(place)
        kind = model.preprocessing.get("kind")
        if kind is None and (place / "tokenizer_config.json").exists():
            kind = "text"
        tokenizer = load_tokenizer(place) if kind == "text" else None
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device), tokenizer, policy)

    def __call__(
        self,
        inputs: Any,
        *,
        policy: ExitPolicy | str | None = None,
        speedup: float | None = None,
        max_loss: float | None = None,
        milliseconds: float | None = None,
        top_k: int | None = None,
        batch_size: int = 32,
    ) -> Answer | list[Answer] | Iterator[Answer]:
        """Answer one input, a list of them, or a generator.

        A text longer than the `max_length` of training is cut there, as in training; a warning
        names the first one.

        Args:
            inputs: a text is a string, and a pair of texts a tuple or a dict with `"text"` and
                `"text_pair"`; where tokens are classified a tuple of words, or a string, whose
                words lie between white space. An image is one of Pillow, a file's name, a file's
                bytes, or an array uint8 [height, width, 3] or [height, width].
            policy: in place of the classifier's own.
            speedup, max_loss, milliseconds: in place of a policy, one target, for which a setting
                is chosen from the model's calibration table (`multiexit.calibration_table`): layers
                of the full network over those that are run, at least; points of what the table
                bounds, accuracy, lost against it, at most (0.5 is 84.5 to 84.0); or of a batch of
                `batch_size` inputs (of one, where one is given) on average, at most, by the model's
                latency table.
            top_k: how many classes `scores` holds; None is all.
            batch_size: inputs that go through the model together, at most.

        Returns:
            For one input its answer. For a list, array or anything else with a length a list of
            answers, in order. For a generator a generator, which answers what has come when nothing
            more comes for 0.05 s, and reads at most four batches ahead.

        Raises:
            ValueError: an input that can't be read, by its position: of a list before any is
                answered (a damaged image file when it is read), of a generator behind the answers
                before it. A policy, target, `top_k` or `batch_size` that won't do; a target that
                no setting of the calibration table reaches, or a model without one.
        """
        batch_size = answering.check_batch(batch_size)
        target = choosing.wanted(
            policy, speedup=speedup, max_loss=max_loss, milliseconds=milliseconds
        )
        if target is not None:
            policy = self._chosen(target, 1 if answering.is_one(inputs) else batch_size)
        top_k = answering.check_top(top_k, self.model.problem, self.model.num_classes)
        respond = partial(self._respond, self._engine(policy), top_k, batch_size)
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
            return Encoded({0: self._image(item, where)})
        row = self._text(item, where)
        data = self._tokenised([row], place)
        inputs = {name: values for name, values in data[0].items() if name != "labels"}
        words = (row, data.words[0]) if isinstance(data, tagging.WordDataset) else None
        return Encoded(inputs, data.lengths[0] >= self._max_length(), words)

    def say(self, logits_C: np.ndarray, exit: int, encoded: Encoded, top_k: int) -> Answer:
        """What an input's logits say.

        Args:
            logits_C: of the exit where it left, [C], or of tokens [T, C].
            exit: which that was.
            encoded: the input.
            top_k: how many classes `scores` holds.
        """
        model = self.model
        if encoded.words is not None:
            said = tagged(logits_C, *encoded.words, model.labels)
        else:
            said = answering.answer_of(logits_C, model.problem, model.labels, top_k)
        return {**said, "exit": exit, "layers": model.exits[exit] + 1}

    def _chosen(self, target: tuple[str, float], rows: int) -> ExitPolicy:
        """The setting of the model's calibration table that serves a target."""
        table, latency, ms_S = self.model.calibration, self.model.latency, []
        if table is None:
            raise ValueError(f"{target[0]}={target[1]:g}: {choosing.NO_TABLE.format(again='')}")
        if target[0] == "milliseconds":
            if latency is None:
                raise ValueError(
                    f"milliseconds={target[1]:g}: the model has no latency table, which says how "
                    "long a setting takes: model.latency = multiexit.profile(model), or `multiexit "
                    "profile`"
                )
            check_latency(self.model, self.model.num_exits, latency)
            ms_S = [latency.expected_ms(each.shares_M, rows) for each in table.settings]
        return table.settings[choosing.choose(table.to_json(), target, ms_S)].policy

    def _engine(self, policy: ExitPolicy | str | None) -> Engine:
        """The engine of a policy."""
        if policy is None and self.policy is None:
            self.policy = FixedExit(self.model.num_exits - 1)
            warnings.warn(
                "this model was saved without a policy, so each input runs through all its layers; "
                "give policy=, such as policy='max-prob=0.9', to stop early",
                stacklevel=user_level(),
            )
        wanted: Any = self.policy if policy is None else policy
        wanted = policies.parse(wanted) if isinstance(wanted, str) else wanted
        for engine in self._engines:
            if engine.policy == wanted:
                return engine
        if self._engines and isinstance(wanted, ExitPolicy):
            engine = self._engines[0].with_policy(wanted)
        else:
            engine = Engine(self.model, wanted)
        self._engines = [engine, *self._engines][:ENGINES]
        return engine

    def _text(self, item: Any, where: str) -> Any:
        if self.tags:
            return words_of(item, where)
        return answering.text_of(item, self.paired, where)

    def _image(self, item: Any, where: str) -> torch.Tensor:
        answering.check_image(item, where)
        try:
            return image_files.read(answering.picture_of(item), self.model.preprocessing)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def _respond(
        self, engine: Engine, top_k: int, batch_size: int, rows: Sequence[Any], first: int
    ) -> Iterator[Answer]:
        """Answers of prepared inputs, of which the first stood at this place."""
        if self.kind == "image":
            data: Any = [torch.stack(list(part)) for part in _parts(rows, batch_size)]
        else:
            data = self._tokenised(rows, first)
        place = 0
        try:
            for prediction in engine.stream(data, batch_size, answering.WINDOWS[self.kind]):
                exits = prediction.exit_B.tolist()
                logits_BC = prediction.logits_BC.float().cpu().numpy()
                for logits_C, exit in zip(logits_BC, exits, strict=True):
                    words = None
                    if isinstance(data, tagging.WordDataset):
                        words = rows[place], data.words[place]
                        logits_C = tagging.in_place(logits_C, data, place)
                    place += 1
                    yield self.say(logits_C, exit, Encoded({}, words=words), top_k)
        except NotFinite as error:
            raise error.shifted(first, "") from error

    def _max_length(self) -> int:
        return self.model.preprocessing.get("max_length", 128)

    def tokenised(self, inputs: Sequence[Any]) -> TextDataset:
        """Texts, pairs or words as a data set for the model.

        Args:
            inputs: as for a call, without images.

        Raises:
            ValueError: one that can't be read, by its position.
        """
        rows = [self._text(item, f"inputs[{place}]") for place, item in enumerate(inputs)]
        return self._tokenised(rows, 0)

    def _tokenised(self, rows: Sequence[Any], first: int) -> TextDataset:
        length = self._max_length()
        try:
            if self.tags:
                data = tagging.tokenised(self.tokenizer, rows, length)
            else:
                pairs = [pair for _, pair in rows] if self.paired else None
                texts = [text for text, _ in rows]
                data = TextDataset.from_texts(self.tokenizer, texts, pairs, max_length=length)
        except ValueError as error:
            raise ValueError(f"inputs[{first}] and behind: {error}") from error
        cut = next((i for i, tokens in enumerate(data.lengths) if tokens >= length), None)
        if cut is not None and not self._told_length:
            self._told_length = True
            warnings.warn(
                f"inputs[{first + cut}] fills all {length} tokens that this model reads: what is "
                "longer is cut there, as in training",
                stacklevel=user_level(),
            )
        return data


def _parts(rows: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
