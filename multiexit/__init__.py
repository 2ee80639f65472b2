"""multiexit: train networks with many exits and make them stop early, for text and for images."""

from multiexit import starting as _starting  # noqa: F401 (first: importing torch takes seconds)

# isort: split
from multiexit import coefficients, gradients, heads, metrics, recipes, topology, weights
from multiexit.backbones import Backbone, Classifier, SequentialBackbone, cifar_resnet, wrap
from multiexit.budget import budgeted
from multiexit.calibrate import calibrate
from multiexit.config import TrainConfig
from multiexit.cost import Cost
from multiexit.engine import Engine
from multiexit.evaluate import Outputs, Row, collect, exit_scores, judge, sweep
from multiexit.export import export
from multiexit.fewer import exits_that_pay, keep_exits
from multiexit.history import History
from multiexit.latency import Latency, profile
from multiexit.losses import loss_matrix
from multiexit.model import MultiExitModel, Prediction
from multiexit.policies import (
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
    simulate,
)
from multiexit.recipes import Phase, Recipe, recipe
from multiexit.scaling import fit_temperatures
from multiexit.space import Choices, Range
from multiexit.trainer import Trainer
from multiexit.tuning import tune

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "Certainty",
    "Certificate",
    "Choices",
    "Classifier",
    "Cost",
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
    "NormalizedEntropy",
    "Outputs",
    "Patience",
    "PatientConfident",
    "Phase",
    "Prediction",
    "Range",
    "Recipe",
    "Row",
    "SequentialBackbone",
    "TrainConfig",
    "Trainer",
    "budgeted",
    "calibrate",
    "cifar_resnet",
    "coefficients",
    "collect",
    "exit_scores",
    "exits_that_pay",
    "export",
    "fit_temperatures",
    "gradients",
    "heads",
    "judge",
    "keep_exits",
    "loss_matrix",
    "metrics",
    "profile",
    "recipe",
    "recipes",
    "simulate",
    "sweep",
    "topology",
    "tune",
    "weights",
    "wrap",
]
