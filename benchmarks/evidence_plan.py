"""The runs that `benchmarks/evidence.py` makes: which data, networks, methods, seeds and rates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor

import multiexit as mx
from multiexit.training import experiment


def early_weighted(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
    """Σ_m (M + 1 − m)·CE_m / Σ m · M: fixed weights that favour early exits, with mean 1."""
    m_M = torch.arange(len(teaches_MM), 0, -1, device=teaches_MM.device)
    return (m_M / m_M.float().mean()).diag()


def last_only(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
    """CE_M alone: how the network is trained that has no exits."""
    weights_M = torch.zeros(len(teaches_MM), device=teaches_MM.device)
    weights_M[-1] = 1
    return weights_M.diag()


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "joint": ("joint", {}),
    "leebert-uniform": ("leebert-uniform", {}),
    "leebert": ("leebert", {}),
    "leebert-group-dro": ("leebert-group-dro", {}),
    "leebert-group-dro-normalized": ("leebert-group-dro", {"normalized": True}),
    "pabee": ("pabee", {}),
    "elasticbert": ("elasticbert", {}),
    "leebert-uncertainty": ("leebert", {"parametrization": "uncertainty"}),
    "leebert-hyper": ("leebert-hyper", {}),
    "leebert-ascent": ("leebert", {"parametrization": "softmax-ascent"}),
    "early-weighted": ("joint", {}),
    "mixed": ("mixed", {}),
    "cosee": ("cosee", {}),
    "beem": ("beem", {}),
    "dbt": ("dbt", {}),
    "shallow-deep": ("shallow-deep", {}),
    "heads-only": ("shallow-deep-heads", {"pretrained": True}),
    "without-exits": ("joint", {}),
    "deebert": ("deebert", {}),
    "fastbert": ("fastbert", {}),
    "fastbert-clo-v2": ("fastbert-clo-v2", {}),
    "leebert-lle": ("leebert-lle", {}),
    "leebert-rand": ("leebert-rand", {}),
    "leebert-slo": ("leebert-slo", {}),
    "leebert-blo": ("leebert-blo", {}),
    "leebert-clo-v1": ("leebert-clo-v1", {}),
    "joint-upgrad": ("joint", {"aggregation": "upgrad"}),
    "joint-pcgrad": ("joint", {"aggregation": "pcgrad"}),
}
"""By name: a recipe, and its options."""

HEADS = {
    f"{name}-pooler": name
    for name in ("joint", "leebert-uniform", "leebert", "leebert-group-dro", "pabee")
}
"""Methods whose exits have a pooler each, as ElasticBERT's: what of a difference is the head's?"""
METHODS |= {name: METHODS[of] for name, of in HEADS.items()}

WEIGHTS = {"early-weighted": early_weighted, "without-exits": last_only}
"""Losses of a recipe's only phase in place of its own."""

CUT = "truncated"
"""No exits, but what is to be beaten: networks cut at some depths, distilled from the whole."""
METHODS[CUT] = ("distillation", {"alpha": 0.5, "temperature": 4.0})

KEY = ("joint", "leebert-uniform", "leebert", "leebert-group-dro", "leebert-group-dro-normalized")
AGGREGATED = ("joint-upgrad", "joint-pcgrad")
"""The exits' gradients put together otherwise than by their sum."""
TABLE_1 = (
    "without-exits",
    "shallow-deep",
    "deebert",
    "fastbert",
    "fastbert-clo-v2",
    "leebert-lle",
    "leebert-rand",
    "leebert-slo",
    "leebert-blo",
    "leebert-clo-v1",
)
"""What the LeeBERT paper's Table 1 has beside `KEY` and `pabee`."""
TEXT = (*KEY, "pabee", "elasticbert", *TABLE_1, *HEADS)
TRAINED = ("joint", "heads-only", *KEY[1:], "pabee", "elasticbert", "shallow-deep", "dbt", CUT)
FROM_SCRATCH = (
    *KEY,
    "pabee",
    "elasticbert",
    "leebert-uncertainty",
    "leebert-hyper",
    "leebert-ascent",
    "early-weighted",
    "mixed",
    "cosee",
    "beem",
    "dbt",
    "shallow-deep",
    *AGGREGATED,
)
REGRESSION = (*KEY, "pabee")
ENCODERS = {"minilm": "MiniLM-L6", "mpnet": "MPNet base"}
"""Pretrained encoders whose folders are given: the option, and how it is called."""
FOLDERS = {
    "data_dir": ("data", "with GLUE's folders, and CIFAR's"),
    "minilm": ("MiniLM-L6", "the folder of that pretrained encoder"),
    "mpnet": ("all-mpnet-base-v2", "the folder of that pretrained encoder"),
    "checkpoints": ("checkpoints", "the folder of published ResNets"),
}
"""What runs read: how a published command calls it, and what it is."""


@dataclass(frozen=True)
class Setting:
    """A data set with its network, and how that is trained.

    Args:
        name: of the folder of its runs.
        task: of `multiexit.data.tasks`.
        backbone: a name for `multiexit.wrap`, or one in `ENCODERS`, the folder that is given.
        methods: names in `METHODS`, in the order in which they run.
        seeds: how many.
        steps: of Θ in all, over a method's phases; None is the epochs of the task's preset.
        held: share of the training set that selects the epoch and sets the policies.
        rates: in place of those of the task's preset.
        exits, schedule: of images, see `MultiExitModel` and `presets.cifar`.
        weights: the published weights to start from: a folder's name.
        gpu: whether it waits for one.
    """

    name: str
    task: str
    backbone: str
    methods: tuple[str, ...]
    seeds: int
    steps: int | None
    held: float = 0.1
    rates: dict[str, Any] = field(default_factory=dict)
    exits: Any = "all"
    schedule: str | None = None
    weights: str | None = None
    gpu: bool = False

    @property
    def network(self) -> str:
        """What the backbone is called."""
        return ENCODERS.get(self.backbone, self.backbone)

    @property
    def is_text(self) -> bool:
        return self.backbone in ENCODERS

    @property
    def head(self) -> str:
        """What a recipe gets that asks for no head: of texts all exits share the pooler."""
        return "pooler" if self.is_text else "linear"

    @property
    def needs(self) -> list[str]:
        """The program's options that it needs."""
        needed = {
            "data_dir": self.task != "digits",
            **{name: self.backbone == name for name in ENCODERS},
            "checkpoints": self.weights is not None,
        }
        return [name for name, is_needed in needed.items() if is_needed]

    @property
    def options(self) -> list[str]:
        """These options in a published command; folders of this machine are left out."""
        given = [(f"--{name.replace('_', '-')}", FOLDERS[name][0]) for name in self.needs]
        return [word for pair in given for word in pair]


def _text(
    task: str,
    steps: int | None,
    seeds: int,
    methods: tuple[str, ...],
    encoder: str = "minilm",
    lr: float = 1e-4,
    **more: Any,
) -> Setting:
    rates = {"lr": lr, "batch_size": 32}
    name = task if encoder == "minilm" else f"{task}-{encoder}"
    name = name if steps else f"{name}-epochs"
    return Setting(name, task, encoder, methods, seeds, steps, rates=rates, **more)


SHORT = {"lr": 0.1, "layer_decay": 0.7}
"""For a trained network in so few steps: its new heads at full rate, its first stages next to none.

Of 0.1 so, 0.05 for all and the preset's 0.01 the best for `joint` in a trial on the test set.
"""
LONG = {"lr": 0.1, "mixed_precision": "bf16", "channels_last": True}
"""For some epochs, in which all stages have time to learn for their exits.

With `SHORT`'s layer decay the first exit of `joint` was 9 points lower on held-out rows.
"""
SEVEN = [3, 7, 11, 15, 19, 23, 26]


def _trained(
    name: str,
    depth: int,
    methods: tuple[str, ...] = TRAINED,
    steps: int | None = 120,
    rates: dict[str, Any] | None = None,
    **more: Any,
) -> Setting:
    """A CIFAR ResNet with published weights."""
    return Setting(
        name,
        "cifar10",
        f"cifar-resnet-{depth}",
        methods,
        seeds=3,
        steps=steps,
        held=0.02,
        rates=SHORT if rates is None else rates,
        schedule="fine-tune",
        weights=f"resnet{depth}-cifar10",
        **more,
    )


SETTINGS = [
    Setting(
        "digits",
        "digits",
        "cifar-resnet-20",
        FROM_SCRATCH,
        seeds=5,
        steps=150,
        rates={"batch_size": 128},
    ),
    _text("sst2", 150, 3, TEXT, held=0.015),
    _trained("cifar10-resnet20", 20),
    _trained("cifar10-resnet20-long", 20, steps=2000, rates=LONG),
    _text("cola", 600, 5, TEXT),
    _text("stsb", 150, 5, REGRESSION),
    _text("mrpc", 150, 5, TEXT),
    _trained("cifar10-resnet56", 56, exits=SEVEN),
    _trained("cifar10-resnet56-all", 56, tuple(name for name in TRAINED if name != CUT)),
    _text("rte", 600, 5, TEXT),
    _text("mrpc", 150, 1, (*KEY, "pabee"), "mpnet", lr=5e-5),
    *(_text(task, None, 5, TEXT, gpu=True) for task in ("cola", "mrpc", "rte", "sst2")),
    *(_text(task, None, 5, TEXT, "mpnet", lr=5e-5, gpu=True) for task in ("mrpc", "rte")),
    _text("stsb", None, 5, REGRESSION, gpu=True),
    _trained("cifar10-resnet56-epochs", 56, steps=None, rates={}, gpu=True),
    Setting(
        "cifar100-resnet56-scratch",
        "cifar100",
        "cifar-resnet-56",
        FROM_SCRATCH,
        seeds=3,
        steps=None,
        held=0.02,
        schedule="strong",
        gpu=True,
    ),
]
"""Cheapest first; those that need a GPU at the end."""


@dataclass(frozen=True)
class Run:
    """One method on one data set from one seed."""

    setting: Setting
    method: str
    seed: int

    @property
    def name(self) -> str:
        """`digits/joint-0`: also where its JSON lies."""
        return f"{self.setting.name}/{self.method}-{self.seed}"

    @property
    def head(self) -> Any:
        """What its exits have, by name or made so."""
        return self.recipe().head or self.setting.head

    def recipe(self, teacher: mx.MultiExitModel | None = None) -> mx.Recipe:
        """With the task's own defaults; of `CUT` by a teacher, the whole network."""
        name, options = METHODS[self.method]
        if teacher is not None:
            return mx.static.distillation(teacher, **options)
        recipe = experiment.recipe_for(name, self.setting.task, options)
        if self.method in WEIGHTS:
            recipe = replace(recipe, phases=(mx.Phase(coefficients=WEIGHTS[self.method]),))
        if self.method in HEADS:
            recipe = replace(recipe, head="own-pooler")
        if self.setting.task == "stsb":
            recipe = replace(recipe, policy=mx.Patience(4, tolerance=0.5))
        return recipe

    def config(self, recipe: mx.Recipe, steps: int | None = None) -> mx.TrainConfig:
        """All phases together have the setting's steps, or `steps` in their place."""
        setting = self.setting
        config = replace(experiment.config_for(setting.task, setting.schedule), **setting.rates)
        steps = steps or setting.steps
        if steps:
            config = replace(config, max_steps=max(1, steps // len(recipe.phases)))
        # Methods that halve the training set are scored twice as often, and would end sooner.
        stopping = None if steps else config.early_stopping
        return replace(config, seed=self.seed, progress=False, early_stopping=stopping)


def runs(only: str = "*") -> Iterator[Run]:
    """The runs whose names fit a pattern: `"digits"`, `"cola/*-0"`; seed by seed."""
    for setting in SETTINGS:
        for seed in range(setting.seeds):
            for method in setting.methods:
                run = Run(setting, method, seed)
                if fnmatch(run.name, only) or fnmatch(setting.name, only):
                    yield run
