"""Training methods by name: each a `Recipe` with its paper and section.

A method is data: who teaches whom, how the terms are weighed, who is trained, and how the result
stops. A new one is a function that returns a `Recipe`.

Every method takes a training set and, where the best epoch is to be kept, a dev set, both with
labels: whole numbers for classes, floats for regression. "Inputs" says what a method needs beside
that, "Relations" which other methods it equals, and when. A recipe's `head` is a suggestion, which
`MultiExitModel(…, head=recipe.head)` follows; what must be so is said under "Inputs".
"""

from multiexit.recipes.base import Phase as Phase
from multiexit.recipes.base import Recipe as Recipe
from multiexit.recipes.base import Seen as Seen
from multiexit.recipes.consistent import consistentee as consistentee
from multiexit.recipes.cosee import cosee as cosee
from multiexit.recipes.experts import beem as beem
from multiexit.recipes.labels import berxit as berxit
from multiexit.recipes.labels import branchynet as branchynet
from multiexit.recipes.labels import elasticbert as elasticbert
from multiexit.recipes.labels import joint as joint
from multiexit.recipes.labels import l2w_den as l2w_den
from multiexit.recipes.labels import msdnet as msdnet
from multiexit.recipes.labels import pabee as pabee
from multiexit.recipes.labels import pcee as pcee
from multiexit.recipes.labels import right_tool as right_tool
from multiexit.recipes.labels import shallow_deep as shallow_deep
from multiexit.recipes.leebert import fastbert_clo_v2 as fastbert_clo_v2
from multiexit.recipes.leebert import leebert as leebert
from multiexit.recipes.leebert import leebert_blo as leebert_blo
from multiexit.recipes.leebert import leebert_clo_v1 as leebert_clo_v1
from multiexit.recipes.leebert import leebert_group_dro as leebert_group_dro
from multiexit.recipes.leebert import leebert_hyper as leebert_hyper
from multiexit.recipes.leebert import leebert_lle as leebert_lle
from multiexit.recipes.leebert import leebert_rand as leebert_rand
from multiexit.recipes.leebert import leebert_slo as leebert_slo
from multiexit.recipes.leebert import leebert_uniform as leebert_uniform
from multiexit.recipes.registry import RECIPES as RECIPES
from multiexit.recipes.registry import recipe as recipe
from multiexit.recipes.stages import deebert as deebert
from multiexit.recipes.stages import fastbert as fastbert
from multiexit.recipes.stages import mixed as mixed
from multiexit.recipes.stages import shallow_deep_heads as shallow_deep_heads
from multiexit.recipes.stages import ztw as ztw
from multiexit.recipes.teachers import dbt as dbt
from multiexit.recipes.teachers import romebert as romebert
from multiexit.recipes.vectors import embedding as embedding
