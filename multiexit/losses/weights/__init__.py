"""The weights Ω of the loss terms: how they are parametrised, and how they are learned.

Letters: M exits. W_MM[i, i] weighs exit i's own loss, W_MM[i, j] what i pays to teacher j.
The loss is (W ∘ A ∘ L).sum(), linear in W, so its gradient in W is A ∘ L: numbers that a forward
pass already has.
"""

from multiexit.losses.weights.ascending import Ascending as Ascending
from multiexit.losses.weights.ascending import GroupDRO as GroupDRO
from multiexit.losses.weights.ascending import Normalized as Normalized
from multiexit.losses.weights.learners import BLO as BLO
from multiexit.losses.weights.learners import CLO1 as CLO1
from multiexit.losses.weights.learners import CLO2 as CLO2
from multiexit.losses.weights.learners import SLO as SLO
from multiexit.losses.weights.learners import Hyper as Hyper
from multiexit.losses.weights.learners import Learner as Learner
from multiexit.losses.weights.learners import Plan as Plan
from multiexit.losses.weights.learners import Random as Random
from multiexit.losses.weights.learners import Uniform as Uniform
from multiexit.losses.weights.names import PARAMETRIZATIONS as PARAMETRIZATIONS
from multiexit.losses.weights.parametrisations import FixedWeights as FixedWeights
from multiexit.losses.weights.parametrisations import LossWeights as LossWeights
from multiexit.losses.weights.parametrisations import RawWeights as RawWeights
from multiexit.losses.weights.parametrisations import RowWeights as RowWeights
from multiexit.losses.weights.parametrisations import SoftmaxWeights as SoftmaxWeights
from multiexit.losses.weights.parametrisations import UncertaintyWeights as UncertaintyWeights
from multiexit.losses.weights.rows import MetaWeights as MetaWeights
from multiexit.losses.weights.rows import WeightNet as WeightNet
from multiexit.losses.weights.simulated import ExitDistances as ExitDistances
from multiexit.losses.weights.simulated import SimulatedExits as SimulatedExits
from multiexit.losses.weights.state import Omega as Omega
