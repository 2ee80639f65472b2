"""Static baselines: networks of one exit, trained and judged as multi-exit ones are.

A static network is a `MultiExitModel` with one exit, at its last stage, so that one table holds
it beside multi-exit methods. For BERT-like encoders of transformers.
"""

from multiexit.static.attention import keep_heads as keep_heads
from multiexit.static.importance import head_importance as head_importance
from multiexit.static.importance import heads_to_keep as heads_to_keep
from multiexit.static.layerdrop import LayerDrop as LayerDrop
from multiexit.static.layers import first_layers as first_layers
from multiexit.static.layers import keep_layers as keep_layers
from multiexit.static.layers import spread_layers as spread_layers
from multiexit.static.patient import pkd as pkd
from multiexit.static.single import fine_tune as fine_tune
from multiexit.static.single import relative_to as relative_to
from multiexit.static.single import single_exit as single_exit
from multiexit.static.theseus import Theseus as Theseus
from multiexit.static.theseus import successor as successor
from multiexit.static.theseus import theseus as theseus
