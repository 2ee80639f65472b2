"""Serving: answers with the layers really skipped, in this process or exported."""

from multiexit.serving.classifier import Classifier as Classifier
from multiexit.serving.engine import Engine as Engine
from multiexit.serving.hosting import service as service
from multiexit.serving.onnx import Parity as Parity
from multiexit.serving.onnx import export as export
from multiexit.serving.profiling import profile as profile
from multiexit.serving.speedup import measured_speedup as measured_speedup
