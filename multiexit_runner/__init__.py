"""Run exported multi-exit networks with onnxruntime and numpy alone."""

from multiexit_runner.runner import Answer, Runner

__all__ = ["Answer", "Runner"]
