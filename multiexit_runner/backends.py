"""What runs a graph: onnxruntime with any of its providers, or OpenVINO."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from multiexit_runner.inputs import Arrays
from multiexit_runner.naming import OptionError, unknown

BACKENDS = ("onnxruntime", "openvino", "openvino-bf16")
ROUNDING = ("openvino-bf16",)
"""Those of `BACKENDS` that multiply in less than float32, where graphs are in that."""
CPU = "CPUExecutionProvider"
MOST_THREADS = 1024
KINDS = {"int64": "int64", "int32": "int32", "float32": "float", "bool": "bool"}
"""Types of arrays, as onnxruntime calls them."""


class Session(NamedTuple):
    """A graph that can be run, as a session of onnxruntime is.

    Args:
        inputs: the type of each as onnxruntime calls it, `tensor(float)`, by name.
        outputs: name, type and shape of each, in order; of the shape what isn't fixed is no number.
        run: from None and inputs by name to outputs in order; raises whatever goes wrong.
    """

    inputs: dict[str, str]
    outputs: list[tuple[str, str, list[Any]]]
    run: Callable[[None, Arrays], Any]


Open = Callable[[bytes], Session]
"""From an ONNX graph's bytes; raises what can't be run, of many kinds."""


def opener(backend: str, threads: int | None, providers: Sequence[Any] | None) -> Open:
    """A function that opens graphs.

    Args:
        backend: one of `BACKENDS`.
        threads: of one call; None is as many as there are cores.
        providers: of onnxruntime, as for `Runner`.

    Raises:
        ValueError: a backend or provider that isn't there, or more threads than `MOST_THREADS`.
    """
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)
    if threads is not None and threads > MOST_THREADS:
        raise ValueError(f"threads must be at most {MOST_THREADS}, got {threads}")
    if backend == "onnxruntime":
        return _onnxruntime(threads, _checked(providers))
    if providers is not None:
        raise OptionError(
            "{providers} are onnxruntime's, and {} runs on the CPU: leave out {}, or take "
            "{backend}='onnxruntime'",
            *(backend, _names(providers)),
        )
    return _openvino(backend, threads)


def runtime(
    backend: str, threads: int | None, providers: Sequence[Any] | None, int8: bool
) -> dict[str, Any]:
    """What runs graphs, to be said: plain data.

    Args:
        backend, threads, providers: as for `opener`.
        int8: whether the graphs are in that.
    """
    short = "bfloat16" if backend in ROUNDING else "float32"
    return {
        "backend": backend,
        "providers": _names(_checked(providers)) if backend == "onnxruntime" else None,
        "precision": "int8" if int8 else short,
        "threads": threads,
    }


def _checked(providers: Sequence[Any] | None) -> list[Any]:
    """The providers to use.

    Raises:
        ValueError: what is no list of names, each alone or with a dict of options, or a provider
            that isn't there.
    """
    if providers is None:
        return [CPU]
    import onnxruntime as ort

    listed = list(providers) if isinstance(providers, list | tuple) else []
    names = _names(listed)
    available = ort.get_available_providers()
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"providers must be a list of names such as ['{CPU}'], each alone or as a pair (name, "
            f"options); got {providers!r}"
        )
    missing = [name for name in names if name not in available]
    if missing:
        install = ""
        if missing[0] in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
            install = "; pip install onnxruntime-gpu, in place of onnxruntime, has it"
        raise ValueError(
            f"no provider {missing[0]!r} in this onnxruntime; it has {', '.join(available)}"
            f"{install}"
        )
    return listed


def _names(providers: Sequence[Any]) -> list[Any]:
    return [each[0] if isinstance(each, tuple) and each else each for each in providers]


def _onnxruntime(threads: int | None, providers: list[Any]) -> Open:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # what goes wrong is raised
    # Each session has its own threads: those of one must not spin while the next one works.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # On CPUs a sum and a normalisation are faster than onnxruntime's one kernel for both.
    slower = ["SkipLayerNormFusion"] if _names(providers) == [CPU] else []

    def open_session(data: bytes) -> Session:
        session = ort.InferenceSession(data, options, providers, disabled_optimizers=slower)
        unused = [name for name in _names(providers) if name not in session.get_providers()]
        if unused:
            raise ValueError(
                f"{unused[0]} is in this onnxruntime but can't be used on this machine (are its "
                "drivers and libraries there?): name other providers"
            )
        return Session(
            {each.name: each.type for each in session.get_inputs()},
            [(each.name, each.type, each.shape) for each in session.get_outputs()],
            session.run,
        )

    return open_session


def _openvino(backend: str, threads: int | None) -> Open:
    try:
        import openvino
    except ImportError as error:
        raise OptionError(
            "{backend}={!r} needs openvino: pip install 'multiexit-torch[openvino]'", backend
        ) from error

    core = openvino.Core()
    short = backend in ROUNDING
    if short and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise OptionError("{backend}={!r}: this CPU has no bfloat16; take 'openvino'", backend)
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if short else "f32",  # OpenVINO's own is what is fastest
        **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
    }

    def open_session(data: bytes) -> Session:
        network = core.read_model(data)
        ports = [(port.any_name, port) for port in network.outputs]
        compiled = core.compile_model(network, "CPU", options)
        idle: list[Any] = []  # requests, of which each thread that runs the graph takes one

        def run(_: None, feed: Arrays) -> list[np.ndarray]:
            try:
                request = idle.pop()
            except IndexError:
                request = compiled.create_infer_request()
            results = request.infer(feed, share_inputs=True)
            idle.append(request)
            return _with_broken(feed, [results[place] for place in range(len(ports))])

        return Session(
            {port.any_name: _type(port) for port in network.inputs},
            [(name, _type(port), _sizes(port)) for name, port in ports],
            run,
        )

    return open_session


def _with_broken(feed: Arrays, results: list[np.ndarray]) -> list[np.ndarray]:
    """Results that are NaN for rows with NaN in them, which OpenVINO's ReLU makes 0.

    Infinite numbers are told in images and features alone; a policy may keep some in its state.
    """
    broken = [
        (np.isnan(x) if x.ndim < 3 else ~np.isfinite(x)).reshape(len(x), -1).any(1)
        for x in feed.values()
        if x.dtype.kind == "f" and x.ndim
    ]
    if not any(rows_B.any() for rows_B in broken):
        return results
    broken_B = np.any(broken, 0)
    return [
        np.where(broken_B.reshape(-1, *[1] * (x.ndim - 1)), x.dtype.type(np.nan), x)
        if x.dtype.kind == "f" and x.shape[:1] == broken_B.shape
        else x
        for x in results
    ]


def _type(port: Any) -> str:
    name = str(np.dtype(port.get_element_type().to_dtype()))
    return f"tensor({KINDS.get(name, name)})"


def _sizes(port: Any) -> list[int | None]:
    return [size.get_length() if size.is_static else None for size in port.get_partial_shape()]
