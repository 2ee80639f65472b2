"""Exit heads: from a stage's feature to logits."""

from multiexit.heads.base import ChainedHead as ChainedHead
from multiexit.heads.base import Factory as Factory
from multiexit.heads.base import Head as Head
from multiexit.heads.base import Memory as Memory
from multiexit.heads.base import Shape as Shape
from multiexit.heads.base import VectorHead as VectorHead
from multiexit.heads.base import ask as ask
from multiexit.heads.base import pool_feature as pool_feature
from multiexit.heads.build import build as build
from multiexit.heads.build import own_head as own_head
from multiexit.heads.chained import CHAINED as CHAINED
from multiexit.heads.chained import CascadedHead as CascadedHead
from multiexit.heads.chained import CertainHead as CertainHead
from multiexit.heads.chained import MixedHead as MixedHead
from multiexit.heads.chained import Vote as Vote
from multiexit.heads.own import OwnHead as OwnHead
from multiexit.heads.plain import AttentionHead as AttentionHead
from multiexit.heads.plain import LinearHead as LinearHead
from multiexit.heads.plain import MixedPoolHead as MixedPoolHead
from multiexit.heads.plain import PoolerHead as PoolerHead
from multiexit.heads.together import classify as classify
from multiexit.heads.together import separable as separable
