"""A backbone with exits: all of them at once for training, or really stopping for prediction.

Letters: M exits, B batch rows, C classes.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multiexit import policies, problems
from multiexit.backbones import Backbone, Carry, adapters, copied, rebuild
from multiexit.backbones.own_rows import check_own
from multiexit.backbones.same import class_of
from multiexit.files import weights
from multiexit.files.paths import user_path
from multiexit.losses import class_names, gradients
from multiexit.losses.gradients import Branch
from multiexit.model import cost, exit_loop, heads, tokens
from multiexit.model.exit_loop import Decision, Prediction
from multiexit.model.folder import SETTINGS, WEIGHTS, backbone_spec, read_folder, save_folder
from multiexit.model.heads.build import hides_head
from multiexit.model.latency import Latency
from multiexit.model.passes import Pass, Segment
from multiexit.model.placement import Exits, resolve_exits
from multiexit.model.settings import FORMAT
from multiexit.policies import CalibrationTable, ExitPolicy, State, from_json
from multiexit.runtime import wide
from multiexit_runner.user_line import user_level

RunStage = Callable[[Carry, int], tuple[Carry, Tensor]]


class MultiExitModel(nn.Module):
    """A backbone with an exit head after some of its stages.

    `forward` is for training and for looking: `predict`, `multiexit.collect`, engines, exports and
    `multiexit.truncate` run stages and heads themselves, so a subclass that overrides `forward`
    changes none of them. Put what you change into the backbone or into heads of your own.

    Args:
        backbone: from `multiexit.wrap`.
        num_classes: C, how many outputs there are; 1 for regression of one number. None is as many
            as the network's own head has; of an embedding, whose vector has C entries, the width of
            the pooled feature.
        exits: `"all"`; stage indices `[3, 7, 11]`; a whole number k for every k-th stage, counted
            so that the last has one; or fractions of the trunk's compute `[0.25, 0.5, 1.0]`, each
            taking the first stage that reaches it.
        head: see `multiexit.heads.build`; None is the backbone's own choice, a shared pooler +
            linear for text, linear for anything else; of an embedding linear.
        pool: `"first"`, `"last"` or `"mean"`; None is the backbone's own choice, of an embedding
            the mean.
        labels: the classes' names: a list, array or series in the order of their numbers, or a
            mapping such as `id2label` or `label2id`; None takes those that the network itself
            knows.
        problem: what the outputs say of a row: `"classification"`, one of C classes;
            `"multi-label"`, for each of C whether it holds; `"regression"`, C numbers;
            `"token-classification"`, one of C classes for each token; `"embedding"`, a vector of
            length 1, at the last exit the network's own. None is the network's own, where its head
            is kept; else classification, or with one output regression.

    Raises:
        ValueError: exits out of range, unsorted, repeated or none; no number of outputs, and no
            head of the network's own that tells it; a head that doesn't fit; names that are no list
            of C different ones; a backbone of a class of your own in which a row needs the others
            of its batch, seen on two rows.

    Attributes:
        exits: the stage of each exit.
        temperature_M: what each exit's logits are divided by; 1 until they are calibrated.
        policy: the policy saved with the model, or None.
        latency: how long its parts take, from `multiexit.profile`, saved with the model; or None.
        calibration: settings to choose among for each call, from `multiexit.calibration_table`,
            saved with the model; or None.
        preprocessing: how inputs were prepared, plain data saved with the model.

    Example:
        >>> import torch, multiexit as mx
        >>> model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=10, exits=[2, 5, 8]).eval()
        >>> x = torch.rand(4, 3, 32, 32)
        >>> model(x).shape  # [M, B, C]
        torch.Size([3, 4, 10])
        >>> model.predict(mx.FixedExit(1), x).exit_B
        tensor([1, 1, 1, 1])
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        exits: Exits = "all",
        head: str | heads.Factory | None = None,
        pool: str | None = None,
        labels: Iterable[Any] | None = None,
        problem: str | None = None,
    ):
        super().__init__()
        if not isinstance(backbone, Backbone):
            raise ValueError(
                f"a MultiExitModel takes a Backbone, got {type(backbone).__name__}: "
                "call multiexit.wrap(…) on it first"
            )
        check_own(backbone)
        self.backbone = backbone
        self.exits = resolve_exits(exits, backbone)
        if num_classes is None and problem == "embedding":
            last = self.exits[-1]
            num_classes = heads.width_of(backbone.feature_shapes[last], backbone.layouts[last])
        elif num_classes is None and backbone.classifier is not None:
            num_classes = backbone.classifier.num_classes
        self.num_classes = num_classes = class_names.count(num_classes)
        vectors = problems.are_vectors(problem)
        if vectors and labels is not None:
            raise ValueError("the entries of an embedding's vector have no names: leave labels out")
        classifier = backbone.classifier
        if classifier is not None and classifier.serves(problem, num_classes):
            problem = classifier.problem if problem is None else problem
            labels = classifier.labels if labels is None and not vectors else labels
        self.problem = problems.resolve(problem, num_classes)
        self.labels = class_names.names(labels, num_classes)
        if self._answers_tokens:
            tokens.check_backbone(backbone)
        if head is None and not vectors and hides_head(backbone, self.exits, num_classes):
            warnings.warn(
                f"the last stage gives {num_classes} numbers, as many as there are outputs, and "
                "the last exit starts anew behind it: if that stage is the network's own head, "
                "name it so, mx.wrap(network, stages=[… all before it], classifier='…'); if it "
                "isn't, head='linear' says so",
                stacklevel=user_level(),
            )
        self.head = heads.usual(backbone, self.problem) if head is None else head
        self.pool = ("mean" if vectors else backbone.pool) if pool is None else pool
        self.heads = heads.build(
            self.head, self.pool, backbone, self.exits, num_classes, self.problem
        )
        has_own_head = isinstance(self.head, str) and heads.own_head(
            backbone, self.exits, num_classes, self.problem
        )
        if has_own_head and classifier is not None and not vectors:
            classifier.check_labels(self.labels)
        # The last head's weights as they were drawn, to know whether they have learnt since.
        drawn = [] if has_own_head else [p for p in self.heads[-1].parameters() if not p.is_meta]
        self._drawn = [p.detach().to("cpu", copy=True) for p in drawn]
        self.temperature_M = nn.Buffer(torch.ones(len(self.exits)))
        trunk = next(backbone.parameters(), None)
        if trunk is not None:
            self.to(trunk.device)
            self.heads.to(trunk.device, trunk.dtype)
        for buffer in self.buffers():
            if 0 in buffer.stride():  # an expanded one, which couldn't be loaded into
                buffer.data = buffer.data.clone()
        self.policy: ExitPolicy | None = None
        self.latency: Latency | None = None
        self.calibration: CalibrationTable | None = None
        self.preprocessing: dict[str, Any] = {}

    @property
    def runs_only(self) -> bool:
        """Whether it is a copy by `multiexit.for_inference`."""
        return self.backbone.runs_only

    @property
    def num_exits(self) -> int:
        """M."""
        return len(self.exits)

    @property
    def _answers_tokens(self) -> bool:
        return self.problem == "token-classification"

    @property
    def own_inputs(self) -> tuple[str, ...]:
        """The names of inputs that the model takes beside its backbone's."""
        return (tokens.ANSWER_MASK,) if self._answers_tokens else ()

    @property
    def last_exit_is_new(self) -> bool:
        """Whether the last exit's head is still as it was drawn at random: no head that came with
        the network, not loaded, not trained."""
        now = [p.detach().cpu() for p in self.heads[-1].parameters()] if self._drawn else []
        return bool(self._drawn) and all(
            p.shape == drawn.shape and torch.equal(p, drawn.to(p.dtype))
            for p, drawn in zip(now, self._drawn, strict=False)
        )

    def forward(self, *args: Any, **inputs: Any) -> Tensor:
        """All exits' logits, [M, B, C], from what the wrapped backbone takes.

        Of tokens they are [M, B, T, C], in the order of the inputs, and 0 at padding.
        """
        return self.run(args, inputs).logits_MBC

    def run(
        self,
        args: Sequence[Any],
        inputs: Mapping[str, Any],
        branch: Branch | None = None,
        keep_features: bool = False,
        run_stage: RunStage | None = None,
    ) -> Pass:
        """All exits' logits and what else the heads say.

        Args:
            args, inputs: as for `forward`.
            branch: how gradients are scaled where exits leave the trunk (`multiexit.gradients`).
            keep_features: give the exits' features too.
            run_stage: runs a stage in place of `backbone.stage`.

        Returns:
            The logits [M, B, C], the certainties [M, B] or None, the features, and of tokens which
            are asked for.

        Raises:
            ValueError: a head whose logits aren't [B, C].
        """
        run_stage = run_stage or self.backbone.stage
        carry = self.start(args, inputs)
        # In evaluation each exit answers for itself, to the bit as in `predict`.
        batched = self.training and heads.separable(self.heads)
        kept = self.training or keep_features or torch.is_grad_enabled()
        overwritten = self.backbone.overwritten if kept else ()
        outputs: list[Tensor] = []
        certainty: list[Tensor] = []
        features: list[Tensor] = []
        memory: heads.Memory = {}
        for stage in range(self.exits[-1] + 1):
            carry, feature = run_stage(carry, stage)
            m = len(outputs)
            if stage != self.exits[m]:
                continue
            if branch is not None:
                exit_factor, trunk_factor = branch(m, self.num_exits)
                feature = gradients.scale(feature, exit_factor)
                carry = gradients.scale(carry, trunk_factor)
            if stage in overwritten:
                carry = copied(carry)
            if batched:
                outputs.append(self.heads[m].vector(feature, carry.get("valid_BT")))  # type: ignore[operator]
            else:
                logits_BC, memory = self._raw_logits(m, feature, carry, memory)
                outputs.append(logits_BC)
            if "certainty" in memory:
                certainty.append(memory["certainty"])
            if keep_features:
                features.append(feature)
        certainty_MB = torch.stack(certainty) if certainty else None
        if batched:
            outputs = list(heads.classify(self.heads, outputs))  # type: ignore[arg-type]
            outputs = [self._answer(raw, carry) for raw in outputs]
        raw_MBC = torch.stack(outputs)
        temperature_M = self.temperature_M.view(-1, *[1] * (raw_MBC.ndim - 1))
        logits_MBC = (raw_MBC / temperature_M).to(raw_MBC.dtype)
        return Pass(logits_MBC, certainty_MB, features, carry.get("asked_BT"))

    @torch.inference_mode()
    def predict(self, policy: ExitPolicy, *args: Any, **inputs: Any) -> Prediction:
        """Run until the policy stops each row; rows that stopped leave the batch.

        Layers behind the exit where the last row leaves are not run at all. Gives the same
        answers as `multiexit.simulate` on the logits of `forward`, in any batch.

        Args:
            policy: decides who stops; whoever never does leaves at the last exit.
            args, inputs: as for `forward`. An empty batch gives an empty answer. Where tokens are
                classified `answer_mask` [B, T] may say which are asked for, 1 or 0; without it all
                real ones are. A row leaves when it would with each of these alone; where none is,
                at the first exit.

        Returns:
            The rows' logits [B, C], or of tokens [B, T, C], and exits [B], in the order that the
            rows came in.

        Raises:
            ValueError: in train mode; a policy that doesn't fit the model, or whose step is
                malformed; no input tensor, or one of a name that the network doesn't take; NaN or
                infinite logits, named by exit and row.
        """
        if not isinstance(policy, ExitPolicy):
            got = repr(policy) if isinstance(policy, str | type) else type(policy).__name__
            raise ValueError(
                "predict takes a policy first, such as Patience(4) or "
                f"multiexit.policies.parse('patience=4'); got {got}"
            )
        policies.check(policy, self.num_exits, self.num_classes, self.problem)
        exit_loop.check_evaluating(self)
        exit_loop.check_names(self.backbone.start, [n for n in inputs if n not in self.own_inputs])
        rows = exit_loop.num_rows(args, inputs)
        answer = exit_loop.empty_prediction(
            self.answer_shape(args, inputs), next(self.parameters())
        )
        if rows:
            carry = self.start(args, inputs)
            group = exit_loop.first_group(
                carry, torch.arange(rows, device=answer.exit_B.device), rows
            )
            exit_loop.run(group, partial(self.decide, policy), exit_loop.num_running, answer)
        return answer

    @torch.inference_mode()
    def full(self, *args: Any, **inputs: Any) -> Tensor:
        """The network without early exits: all stages and the last head alone, [B, C].

        A head that reads what earlier ones left has nothing to read here.
        """
        carry, feature = self.start(args, inputs), None
        for exit in range(self.num_exits):
            carry, feature = self.to_exit(exit, carry)
        assert feature is not None
        return self.ask(self.num_exits - 1, feature, carry, {})[0]

    def start(self, args: Sequence[Any], inputs: Mapping[str, Any]) -> Carry:
        """The carry before the first stage.

        Args:
            args, inputs: as for `forward`.

        Raises:
            ValueError: what the backbone refuses, or an `answer_mask` that doesn't fit.
        """
        if self._answers_tokens:
            return tokens.start(self.backbone, args, inputs)
        carry = dict(self.backbone.start(*args, **inputs))
        carry.pop("first_B", None)  # it is for answers of tokens
        return carry

    def answer_shape(self, args: Sequence[Any], inputs: Mapping[str, Any]) -> tuple[int, ...]:
        """The shape of one exit's logits: [B, C], or of tokens [B, T, C].

        Args:
            args, inputs: as for `forward`.
        """
        rows = exit_loop.num_rows(args, inputs)
        if self._answers_tokens:
            return (rows, tokens.shape(args, inputs)[1], self.num_classes)
        return (rows, self.num_classes)

    def to_exit(self, exit: int, carry: Carry) -> tuple[Carry, Tensor]:
        """Run the stages behind the exit before, up to this one.

        Args:
            exit: m, counted from 0.
            carry: what `start` or the stages before gave.

        Returns:
            The carry for the next stage, and the feature [B, …] of this exit's stage.
        """
        feature: Any = None
        for stage in range(self.exits[exit - 1] + 1 if exit else 0, self.exits[exit] + 1):
            carry, feature = self.backbone.stage(carry, stage)
        return carry, feature

    def segment(self, exit: int, carry: Carry, memory: heads.Memory) -> Segment:
        """Run the stages behind the exit before, up to this one, and its head.

        Args:
            exit: m, counted from 0.
            carry, memory: what `start` (with an empty memory) or the segment before gave.

        Raises:
            ValueError: a head whose logits aren't [B, C].
        """
        carry, feature = self.to_exit(exit, carry)
        logits_BC, memory = self.ask(exit, feature, carry, memory)
        return Segment(carry, logits_BC, memory)

    def decide(
        self, policy: ExitPolicy, exit: int, carry: Carry, memory: heads.Memory, state: State
    ) -> Decision:
        """Run the stages up to an exit, ask its head, and let the policy decide who stops.

        The policy sees float32 at least, as `multiexit.collect` keeps logits.

        Args:
            policy: of which `state` is.
            exit, carry, memory: as for `segment`.
            state: the policy's after the exit before; at the first one nothing, or what
                `PerRow.row_state` gave.

        Raises:
            ValueError: a head whose logits aren't [B, C], or a policy whose step is malformed.
        """
        policy = policies.for_problem(policy, self.problem)
        carry, logits_BC, memory = self.segment(exit, carry, memory)
        wide_BC = wide(logits_BC)
        if exit == 0:
            state = {**state, **policy.init(wide_BC)}
        if exit == self.num_exits - 1:
            stop_B = wide_BC.new_ones(len(wide_BC), dtype=torch.bool)
        else:
            state, stop_B = policies.step(
                policy, state, wide_BC, memory.get("certainty"), carry.get("asked_BT")
            )
        answer_BC = policies.answer(policy, state, wide_BC)
        if self._answers_tokens:  # a policy may say something at padding
            answer_BC = tokens.blank(answer_BC, carry)
        return Decision(carry, memory, state, logits_BC, answer_BC, stop_B)

    def ask(
        self, exit: int, feature: Tensor, carry: Carry, memory: heads.Memory
    ) -> tuple[Tensor, heads.Memory]:
        """Ask one exit's head.

        Args:
            exit: m, counted from 0.
            feature: of its stage, [B, …].
            carry: after that stage.
            memory: what the heads before left.

        Returns:
            The logits [B, C], divided by the exit's temperature, and the memory for the next head.

        Raises:
            ValueError: a head whose logits aren't [B, C].
        """
        logits_BC, memory = self._raw_logits(exit, feature, carry, memory)
        return logits_BC / self.temperature_M[exit], memory

    def _raw_logits(
        self, exit: int, feature: Tensor, carry: Carry, memory: heads.Memory
    ) -> tuple[Tensor, heads.Memory]:
        """`ask`, before the logits are divided by the temperature."""
        logits_BC, memory = heads.ask(self.heads[exit], feature, carry.get("valid_BT"), memory)
        wanted = (len(feature), self.num_classes)
        if self._answers_tokens:
            read_BT = carry.get("valid_BT")  # what a backbone filled up is more than was asked
            read_BT = carry["asked_BT"] if read_BT is None else read_BT
            wanted = (*read_BT.shape, self.num_classes)
        if not isinstance(logits_BC, Tensor) or logits_BC.shape != wanted:
            tensor = isinstance(logits_BC, Tensor)
            gives = tuple(logits_BC.shape) if tensor else f"a {type(logits_BC).__name__}"
            raise ValueError(
                f"the head of exit {exit} gives {gives}; for {len(feature)} rows "
                f"and {self.num_classes} classes it must give {wanted}"
            )
        return self._answer(logits_BC, carry), memory

    def _answer(self, raw_BC: Tensor, carry: Carry) -> Tensor:
        """An exit's logits, from what its head gives."""
        if self._answers_tokens:
            return tokens.in_order(raw_BC, carry)
        return problems.outputs_of(raw_BC, self.problem)

    def cost(self, inputs: dict[str, Tensor] | None = None) -> cost.Cost:
        """Layers, MACs and parameters at each exit, of one input row (see `multiexit.Cost`).

        Without inputs the row is one of `example_inputs`.
        """
        inputs = self.example_inputs() if inputs is None else inputs
        return cost.count(self.backbone, self.heads, self.exits, inputs)

    def example_inputs(self) -> dict[str, Tensor]:
        """One row [1, …] as the backbone reads it; an image in the size in `preprocessing`."""
        inputs = self.backbone.example_inputs()
        shape = self.preprocessing.get("shape")
        if shape is not None and list(inputs) == ["x"] and inputs["x"].ndim == 4:
            inputs = {"x": inputs["x"].new_zeros(1, *shape)}
        return inputs

    def save_pretrained(self, folder: str | Path, tokenizer: Any = None) -> None:
        """Write weights (safetensors) and everything else (JSON) to a folder.

        The backbone's architecture, exits, heads, label names and policy go together; with a
        tokenizer, so does that. Files are written aside and renamed: a full disk leaves what was
        there before.

        Args:
            folder: made where it isn't there.
            tokenizer: of `transformers`, saved beside the weights.

        Raises:
            ValueError: a policy that doesn't fit the model, settings that JSON can't hold, a copy
                for running only, or a file where the folder is to be.
            OSError: the folder can't be written.

        Example:
            >>> import tempfile, multiexit as mx
            >>> model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=10)
            >>> model.policy = mx.MaxProb(0.9)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     model.save_pretrained(folder)
            ...     again = mx.MultiExitModel.from_pretrained(folder)
            >>> again.policy
            MaxProb(threshold=0.9)
        """
        self.check_complete("saved")
        settings = self.settings(backbone_spec(self.backbone))
        save_folder(user_path(folder), self, settings, tokenizer)

    def push_to_hub(self, repo: str, tokenizer: Any = None, **options: Any) -> str:
        """Save the model and upload it to the Hugging Face hub, as one commit.

        Args:
            repo: `"user/name"`, made where it isn't there.
            tokenizer: saved with it.
            options: `revision`, `token`, `private` and `message` of `multiexit.model.hub.push`.

        Returns:
            The address of the commit.

        Raises:
            ValueError, OSError: as `save_pretrained` and `multiexit.model.hub.push`.
        """
        from multiexit.model import hub

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, tokenizer)
            return hub.push(folder, repo, **options)

    def check_complete(self, what: str) -> None:
        """Refuse a copy that `multiexit.for_inference` made.

        Args:
            what: would be done to it, for the message.

        Raises:
            ValueError: it is one.
        """
        if self.runs_only:
            raise ValueError(
                f"this copy is for running only, and can't be {what}: take the model that it was "
                "made of"
            )

    def settings(self, spec: dict[str, Any] | None) -> dict[str, Any]:
        """Everything but the weights, as plain data: what `multiexit.json` holds.

        Args:
            spec: the backbone's description; None where it has none.

        Raises:
            ValueError: a policy that doesn't fit the model; adapters of peft in its heads.
        """
        if isinstance(self.head, str) and (found := adapters.layers(self.heads)):
            raise ValueError(
                f"heads are saved without adapters, and there is one in heads.{next(iter(found))}: "
                "put them into model.backbone alone, or call multiexit.merge_adapters(model) first"
            )
        if self.policy is not None:
            policies.check(self.policy, self.num_exits, self.num_classes, self.problem)
        if self.calibration is not None:
            self._check_calibration(self.calibration)
        return {
            "format": FORMAT,
            "backbone": spec,
            **({} if spec else {"backbone_class": class_of(self.backbone).__qualname__}),
            "num_classes": self.num_classes,
            "problem": self.problem,
            "exits": list(self.exits),
            "head": self.head if isinstance(self.head, str) else None,
            "pool": self.pool,
            "labels": self.labels,
            "preprocessing": self.preprocessing,
            "policy": None if self.policy is None else policies.to_json(self.policy),
            "latency": None if self.latency is None else self.latency.to_json(),
            "calibration": None if self.calibration is None else self.calibration.to_json(),
        }

    def _check_calibration(self, table: CalibrationTable) -> None:
        """Refuse a table of other exits or of a policy that doesn't fit, by a ValueError."""
        if (exits := len(table.settings[0].shares_M)) != self.num_exits:
            raise ValueError(f"the calibration table is of {exits} exits, not {self.num_exits}")
        for setting in table.settings:
            policies.check(setting.policy, self.num_exits, self.num_classes, self.problem)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        backbone: Backbone | None = None,
        head: heads.Factory | None = None,
        policies: Sequence[type[ExitPolicy]] = (),
        revision: str | None = None,
        token: str | None = None,
    ) -> "MultiExitModel":
        """Load what `save_pretrained` wrote, without the original checkpoint.

        Args:
            folder: a local folder, or a repository of the Hugging Face hub.
            backbone: a fresh one, where the saved one can't be rebuilt from its description (an
                `nn.Sequential`, a module whose parts were named).
            head: the head's function, where it was the user's own.
            policies: policy classes of the user's own that may be saved in it.
            revision, token: of a repository of the hub.

        Returns:
            The model, in evaluation mode, on the CPU.

        Raises:
            ValueError: no such folder; a file cut short, of another version, or with missing
                tensors; a backbone, head or policy of the user's own that isn't passed.

        Warns:
            UserWarning: a backbone of another class than the saved one's.
        """
        path, settings = read_folder(folder, backbone, head, revision, token)
        try:
            policy = None if settings["policy"] is None else from_json(settings["policy"], policies)
            table = settings.get("calibration")
            calibration = None if table is None else CalibrationTable.from_json(table, policies)
        except ValueError as error:
            raise ValueError(f"{path / SETTINGS}: {error}") from error
        model = cls(
            rebuild(settings["backbone"]) if backbone is None else backbone,
            settings["num_classes"],
            settings["exits"],
            head or settings["head"],
            settings["pool"],
            settings["labels"],
            settings.get("problem"),
        )
        model.preprocessing, model.policy = settings["preprocessing"], policy
        if calibration is not None:
            model._check_calibration(calibration)
            model.calibration = calibration
        if settings.get("latency") is not None:
            model.latency = Latency.from_json(settings["latency"])
        weights.load_weights(model, path / WEIGHTS, path)
        # LeViT keeps what it worked out of its weights in evaluation until it trains.
        return model.train().eval()
