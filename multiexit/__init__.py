"""multiexit: train networks with many exits and make them stop early, for text and for images.

What the words and letters in names and docstrings mean is in `docs/words-and-letters.md`.
"""

from multiexit import starting as _starting  # noqa: F401 (first: importing torch takes seconds)

# isort: split
from importlib import import_module
from types import ModuleType

from multiexit import recipes
from multiexit._version import __version__ as __version__
from multiexit.backbones import (
    Backbone,
    NetworkHead,
    SequentialBackbone,
    cifar_resnet,
    image_preparation,
    merge_adapters,
    wrap,
)
from multiexit.evaluation import metrics
from multiexit.evaluation import pictures as pictures
from multiexit.evaluation import report as report
from multiexit.evaluation.budget import budgeted
from multiexit.evaluation.calibration import calibrate
from multiexit.evaluation.calibration_table import calibration_table
from multiexit.evaluation.exit_choice import exits_that_pay
from multiexit.evaluation.experts import fit_experts
from multiexit.evaluation.history import History
from multiexit.evaluation.judging import Row, exit_scores, judge, sweep
from multiexit.evaluation.outputs import Outputs, collect
from multiexit.evaluation.replay import replay
from multiexit.evaluation.temperature_scaling import fit_temperatures
from multiexit.losses import coefficients, gradients, topology, weights
from multiexit.losses.criterion import Criterion
from multiexit.losses.matrix import loss_matrix
from multiexit.model import heads
from multiexit.model.cost import Cost
from multiexit.model.exit_loop import Prediction
from multiexit.model.latency import Latency
from multiexit.model.model import MultiExitModel
from multiexit.model.subset import keep_exits
from multiexit.model.truncation import truncate
from multiexit.policies import (
    Beem,
    CalibrationTable,
    Certainty,
    Certificate,
    Entropy,
    ExitPolicy,
    FixedExit,
    Margin,
    MaxProb,
    MostConfident,
    NormalizedEntropy,
    Patience,
    PatientConfident,
    ProductOfExperts,
    Settled,
    simulate,
)
from multiexit.recipes import Phase, Recipe, recipe
from multiexit.serving.classifier import Classifier
from multiexit.serving.engine import Engine
from multiexit.serving.folding import for_inference
from multiexit.serving.onnx import export
from multiexit.serving.profiling import profile
from multiexit.training import presets as presets
from multiexit.training.callbacks import Callback
from multiexit.training.config import TrainConfig
from multiexit.training.search.queue import tune
from multiexit.training.search.space import Choices, Range
from multiexit.training.trainer import Trainer

__all__ = [
    "Backbone",
    "Beem",
    "CalibrationTable",
    "Callback",
    "Certainty",
    "Certificate",
    "Choices",
    "Classifier",
    "Cost",
    "Criterion",
    "Engine",
    "Entropy",
    "ExitPolicy",
    "FixedExit",
    "History",
    "Latency",
    "Margin",
    "MaxProb",
    "MostConfident",
    "MultiExitModel",
    "NetworkHead",
    "NormalizedEntropy",
    "Outputs",
    "Patience",
    "PatientConfident",
    "Phase",
    "Prediction",
    "ProductOfExperts",
    "Range",
    "Recipe",
    "Row",
    "SequentialBackbone",
    "Settled",
    "TrainConfig",
    "Trainer",
    "budgeted",
    "calibrate",
    "calibration_table",
    "cifar_resnet",
    "coefficients",
    "collect",
    "exit_scores",
    "exits_that_pay",
    "export",
    "fit_experts",
    "fit_temperatures",
    "for_inference",
    "gradients",
    "heads",
    "image_preparation",
    "judge",
    "keep_exits",
    "loss_matrix",
    "merge_adapters",
    "metrics",
    "profile",
    "recipe",
    "recipes",
    "replay",
    "simulate",
    "sweep",
    "topology",
    "truncate",
    "tune",
    "weights",
    "wrap",
]


def __getattr__(name: str) -> ModuleType:
    if name == "static":  # which imports transformers' models, and that takes seconds
        return import_module("multiexit.recipes.static")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
