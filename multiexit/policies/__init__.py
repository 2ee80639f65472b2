"""When to stop: exit policies, and how they run on stored logits."""

from multiexit.policies.base import ExitPolicy as ExitPolicy
from multiexit.policies.base import State as State
from multiexit.policies.base import answers as answers
from multiexit.policies.base import simulate as simulate
from multiexit.policies.base import step as step
from multiexit.policies.certificate import Certificate as Certificate
from multiexit.policies.confidence import Certainty as Certainty
from multiexit.policies.confidence import Entropy as Entropy
from multiexit.policies.confidence import Margin as Margin
from multiexit.policies.confidence import MaxProb as MaxProb
from multiexit.policies.confidence import MostConfident as MostConfident
from multiexit.policies.confidence import NormalizedEntropy as NormalizedEntropy
from multiexit.policies.confidence import entropy as entropy
from multiexit.policies.confidence import normalized_entropy as normalized_entropy
from multiexit.policies.names import POLICIES as POLICIES
from multiexit.policies.names import field_types as field_types
from multiexit.policies.names import from_json as from_json
from multiexit.policies.names import parse as parse
from multiexit.policies.names import to_json as to_json
from multiexit.policies.patience import FixedExit as FixedExit
from multiexit.policies.patience import Patience as Patience
from multiexit.policies.patience import PatientConfident as PatientConfident
