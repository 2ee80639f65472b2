"""Networks of transformers that read images, videos or sound, taken apart by their own forward."""

from torch import Tensor

from multiexit.backbones.base import Carry
from multiexit.backbones.layers.recorded import RecordedBackbone
from multiexit.backbones.one_input import one_tensor
from multiexit.backbones.running import in_precision


class RecordedPixels(RecordedBackbone):
    """A `RecordedBackbone` that reads images."""

    @one_tensor
    def start(self, pixel_values: Tensor) -> Carry:
        return self.begin({"pixel_values": in_precision(pixel_values, self)})


class RecordedWaves(RecordedBackbone):
    """A `RecordedBackbone` that reads sound as waves, or what its extractor calls so."""

    @one_tensor
    def start(self, input_values: Tensor) -> Carry:
        return self.begin({"input_values": in_precision(input_values, self)})


class RecordedFeatures(RecordedBackbone):
    """A `RecordedBackbone` that reads sound as spectra."""

    @one_tensor
    def start(self, input_features: Tensor) -> Carry:
        return self.begin({"input_features": in_precision(input_features, self)})


class RecordedVideos(RecordedBackbone):
    """A `RecordedBackbone` that reads videos, by the name that some networks have for them."""

    @one_tensor
    def start(self, pixel_values_videos: Tensor) -> Carry:
        return self.begin({"pixel_values_videos": in_precision(pixel_values_videos, self)})


ROWS = {
    "pixel_values_videos": RecordedVideos,
    "pixel_values": RecordedPixels,
    "input_values": RecordedWaves,
    "input_features": RecordedFeatures,
}
"""By the name of a model's main input, where that isn't tokens."""
