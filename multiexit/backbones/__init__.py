"""Backbones: anything becomes a start and a list of stages."""

from multiexit.backbones.adapters import merge_adapters as merge_adapters
from multiexit.backbones.base import Backbone as Backbone
from multiexit.backbones.base import Carry as Carry
from multiexit.backbones.base import copied as copied
from multiexit.backbones.base import select as select
from multiexit.backbones.classifier import NetworkHead as NetworkHead
from multiexit.backbones.preparing import image_preparation as image_preparation
from multiexit.backbones.rebuilding import rebuild as rebuild
from multiexit.backbones.sequential import SequentialBackbone as SequentialBackbone
from multiexit.backbones.vision.resnet import cifar_resnet as cifar_resnet
from multiexit.backbones.wrapping import wrap as wrap
