"""Loops of other libraries: the loss of a recipe for them, and what they are told of each exit."""

from multiexit.integrations.phase_loss import PhaseLoss as PhaseLoss
from multiexit.integrations.phase_loss import exit_figures as exit_figures
