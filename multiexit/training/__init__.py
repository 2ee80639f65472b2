"""Training: the loop, its settings, what a run leaves on disk, and the search for settings."""

from multiexit.training.callbacks import Callback as Callback
from multiexit.training.callbacks import Run as Run
from multiexit.training.config import TrainConfig as TrainConfig
from multiexit.training.search.queue import tune as tune
from multiexit.training.search.space import Choices as Choices
from multiexit.training.search.space import Range as Range
from multiexit.training.trainer import Trainer as Trainer
