"""Models that leave PyTorch: a folder of ONNX graphs, one per exit, for `multiexit_runner`."""

from multiexit.serving.onnx.parity import Parity as Parity
from multiexit.serving.onnx.writing import export as export
