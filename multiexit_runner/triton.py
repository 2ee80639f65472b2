"""An export as a model of Triton Inference Server: rows leave between the graphs that it runs.

`multiexit export … --triton` puts this package beside a `model.py` that takes the class from here.
Triton brings `triton_python_backend_utils`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from multiexit_runner.folder import SETTINGS
from multiexit_runner.graphs import Graphs
from multiexit_runner.inputs import Arrays
from multiexit_runner.sessions import graph_outputs
from multiexit_runner.settings import parse_settings


def graph_name(name: str, exit: int) -> str:
    """What the graph of an exit is called, beside a model of this name."""
    return f"{name}-exit-{exit}"


class Graph:
    """A graph that Triton runs, asked as a session of onnxruntime is.

    Args:
        utils: `triton_python_backend_utils`.
        model: what Triton calls it.
        outputs: their names.
    """

    def __init__(self, utils: Any, model: str, outputs: list[str]):
        self.utils, self.model, self.outputs = utils, model, outputs

    def run(self, _: None, feed: Arrays) -> list[np.ndarray]:
        """What it gives for these arrays, in order.

        Raises:
            RuntimeError: what Triton says went wrong.
        """
        utils = self.utils
        response = utils.InferenceRequest(
            model_name=self.model,
            requested_output_names=self.outputs,
            inputs=[utils.Tensor(n, np.ascontiguousarray(array)) for n, array in feed.items()],
            preferred_memory=utils.PreferredMemory(utils.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise RuntimeError(response.error().message())
        return [utils.get_output_tensor_by_name(response, n).as_numpy() for n in self.outputs]


class TritonPythonModel:
    """What Triton's Python backend asks for."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the export's settings, which lie beside this package."""
        import triton_python_backend_utils as utils  # pyright: ignore[reportMissingImports]

        path = Path(__file__).parents[1] / SETTINGS
        settings = parse_settings(path.read_bytes(), str(path))
        graphs = [
            Graph(utils, graph_name(args["model_name"], exit), graph_outputs(segment["outputs"]))
            for exit, segment in enumerate(settings["segments"])
        ]
        self.utils, self.graphs = utils, Graphs(settings, graphs)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response to each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        utils, graphs = self.utils, self.graphs
        names = graphs.settings["inputs"]
        try:
            given = {n: utils.get_input_tensor_by_name(request, n).as_numpy() for n in names}
            graphs.trimmed(graphs.named((), given))  # refuses what predict would
        except ValueError as error:
            return self._refusal(error, utils.TritonError.INVALID_ARG)
        try:
            answer = graphs.predict(**given)
        except ValueError as error:
            return self._refusal(error, utils.TritonError.INTERNAL)
        return utils.InferenceResponse(
            output_tensors=[
                utils.Tensor("logits", answer.logits_BC),
                utils.Tensor("exit", answer.exit_B),
            ]
        )

    def _refusal(self, error: ValueError, code: Any) -> Any:
        utils = self.utils
        return utils.InferenceResponse(error=utils.TritonError(str(error), code))
