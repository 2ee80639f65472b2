"""Evaluation: what a model says on a set, how good that is, and which policy to choose."""

from multiexit.evaluation.budget import budgeted as budgeted
from multiexit.evaluation.calibration import calibrate as calibrate
from multiexit.evaluation.exit_choice import exits_that_pay as exits_that_pay
from multiexit.evaluation.history import History as History
from multiexit.evaluation.judging import Row as Row
from multiexit.evaluation.judging import exit_scores as exit_scores
from multiexit.evaluation.judging import judge as judge
from multiexit.evaluation.judging import sweep as sweep
from multiexit.evaluation.outputs import Outputs as Outputs
from multiexit.evaluation.outputs import collect as collect
from multiexit.evaluation.temperature_scaling import fit_temperatures as fit_temperatures
