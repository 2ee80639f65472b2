"""A backbone with exits: the model, its heads, what it costs, and its folder."""

from multiexit.model.cost import Cost as Cost
from multiexit.model.exit_loop import Decision as Decision
from multiexit.model.exit_loop import Prediction as Prediction
from multiexit.model.latency import Latency as Latency
from multiexit.model.model import MultiExitModel as MultiExitModel
from multiexit.model.passes import Pass as Pass
from multiexit.model.passes import Segment as Segment
from multiexit.model.placement import Exits as Exits
from multiexit.model.placement import resolve_exits as resolve_exits
from multiexit.model.subset import keep_exits as keep_exits
