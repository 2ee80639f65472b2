"""Exit heads: from a stage's feature to logits."""

from multiexit.model.heads.base import ChainedHead as ChainedHead
from multiexit.model.heads.base import Factory as Factory
from multiexit.model.heads.base import Features as Features
from multiexit.model.heads.base import Head as Head
from multiexit.model.heads.base import Memory as Memory
from multiexit.model.heads.base import Shape as Shape
from multiexit.model.heads.base import VectorHead as VectorHead
from multiexit.model.heads.base import ask as ask
from multiexit.model.heads.base import pool_feature as pool_feature
from multiexit.model.heads.batched import classify as classify
from multiexit.model.heads.batched import separable as separable
from multiexit.model.heads.build import HEADS as HEADS
from multiexit.model.heads.build import build as build
from multiexit.model.heads.build import own_head as own_head
from multiexit.model.heads.build import usual as usual
from multiexit.model.heads.chained import CHAINED as CHAINED
from multiexit.model.heads.chained import CascadedHead as CascadedHead
from multiexit.model.heads.chained import CertainHead as CertainHead
from multiexit.model.heads.chained import MixedHead as MixedHead
from multiexit.model.heads.chained import Vote as Vote
from multiexit.model.heads.own import OwnHead as OwnHead
from multiexit.model.heads.plain import AttentionHead as AttentionHead
from multiexit.model.heads.plain import LinearHead as LinearHead
from multiexit.model.heads.plain import MixedPoolHead as MixedPoolHead
from multiexit.model.heads.plain import PoolerHead as PoolerHead
from multiexit.model.heads.tokens import TokenHead as TokenHead
