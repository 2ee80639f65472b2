"""Static baselines: networks of one exit, trained and judged as multi-exit ones are.

A static network is a `MultiExitModel` with one exit, at its last stage, so that one table holds
it beside multi-exit methods. `distillation` and `fine_tune` are for any network, the others for
BERT-like encoders of transformers.
"""

from multiexit.evaluation.judging import relative_to as relative_to
from multiexit.recipes.static.attention_heads import keep_heads as keep_heads
from multiexit.recipes.static.baselines import BASELINES as BASELINES
from multiexit.recipes.static.baselines import baseline as baseline
from multiexit.recipes.static.distilled import distillation as distillation
from multiexit.recipes.static.importance import head_importance as head_importance
from multiexit.recipes.static.importance import heads_to_keep as heads_to_keep
from multiexit.recipes.static.layerdrop import LayerDrop as LayerDrop
from multiexit.recipes.static.layers import first_layers as first_layers
from multiexit.recipes.static.layers import keep_layers as keep_layers
from multiexit.recipes.static.layers import spread_layers as spread_layers
from multiexit.recipes.static.pkd import pkd as pkd
from multiexit.recipes.static.single import fine_tune as fine_tune
from multiexit.recipes.static.single import single_exit as single_exit
from multiexit.recipes.static.theseus import Theseus as Theseus
from multiexit.recipes.static.theseus import successor as successor
from multiexit.recipes.static.theseus import theseus as theseus
