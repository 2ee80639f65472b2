"""multiexit: train networks with many exits and make them stop early, for text and for images."""

from multiexit import coefficients, heads, metrics, recipes, topology, weights
from multiexit.backbones import Backbone, SequentialBackbone, cifar_resnet, wrap
from multiexit.calibrate import calibrate
from multiexit.config import TrainConfig
from multiexit.cost import Cost
from multiexit.evaluate import Outputs, Row, collect, exit_scores, judge, sweep
from multiexit.history import History
from multiexit.losses import loss_matrix
from multiexit.model import MultiExitModel, Prediction
from multiexit.policies import (
    Entropy,
    ExitPolicy,
    FixedExit,
    Margin,
    MaxProb,
    NormalizedEntropy,
    Patience,
    PatientConfident,
    simulate,
)
from multiexit.recipes import Phase, Recipe, recipe
from multiexit.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "Backbone",
    "Cost",
    "Entropy",
    "ExitPolicy",
    "FixedExit",
    "History",
    "Margin",
    "MaxProb",
    "MultiExitModel",
    "NormalizedEntropy",
    "Outputs",
    "Patience",
    "PatientConfident",
    "Phase",
    "Prediction",
    "Recipe",
    "Row",
    "SequentialBackbone",
    "TrainConfig",
    "Trainer",
    "calibrate",
    "cifar_resnet",
    "coefficients",
    "collect",
    "exit_scores",
    "heads",
    "judge",
    "loss_matrix",
    "metrics",
    "recipe",
    "recipes",
    "simulate",
    "sweep",
    "topology",
    "weights",
    "wrap",
]
