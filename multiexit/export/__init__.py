"""Models that leave PyTorch: a folder of ONNX graphs, one per exit, for `multiexit_runner`."""

from multiexit.export.parity import Parity as Parity
from multiexit.export.writing import export as export
