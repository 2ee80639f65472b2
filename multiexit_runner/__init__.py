"""Run exported multi-exit networks with numpy and onnxruntime, or OpenVINO, alone."""

from multiexit_runner.classifier import Classifier
from multiexit_runner.leaving import Answer
from multiexit_runner.runner import Runner

__all__ = ["Answer", "Classifier", "Runner"]
