"""What a `model.py` of Triton sees of it, and no more: to be called `triton_python_backend_utils`.

Graphs are run by onnxruntime, and held to the names, types and sizes of their `config.pbtxt`.
Run as a program it is the server: a repository, a model, arrays in, arrays out.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

TRITONSERVER_MEMORY_CPU = 0
KIND = descriptor_pb2.FieldDescriptorProto
TYPES = ["INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32",
         "INT64", "FP16", "FP32", "FP64", "STRING", "BF16"]  # fmt: skip
NUMPY = {"BOOL": "bool", "INT32": "int32", "INT64": "int64", "FP32": "float32"}
FIELDS = {
    "Tensor": {"name": KIND.TYPE_STRING, "data_type": "DataType", "dims": [KIND.TYPE_INT64]},
    "Group": {"kind": "Kind"},
    "ModelConfig": {
        **{"name": KIND.TYPE_STRING, "backend": KIND.TYPE_STRING},
        **{"max_batch_size": KIND.TYPE_INT32, "instance_group": ["Group"]},
        **{"input": ["Tensor"], "output": ["Tensor"]},
    },
}
"""The part of Triton's ModelConfig that repositories use: types by name, lists where repeated."""


def _model_config():
    """The class of messages with these fields."""
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference")
    for name, values in (
        ("DataType", [f"TYPE_{each}" for each in TYPES]),
        ("Kind", ["KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL"]),
    ):
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            many, kind = isinstance(kind, list), kind[0] if isinstance(kind, list) else kind
            added = message.field.add(name=field, number=number)
            added.label = KIND.LABEL_REPEATED if many else KIND.LABEL_OPTIONAL
            if isinstance(kind, str):
                added.type = KIND.TYPE_MESSAGE if kind in FIELDS else KIND.TYPE_ENUM
                added.type_name = f".inference.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


ModelConfig = _model_config()


def config_of(folder):
    """A model's configuration, parsed."""
    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


def check(tensors, arrays):
    """Hold arrays to what a configuration says of them."""
    specs = {each.name: each for each in tensors}
    assert specs.keys() == arrays.keys(), (specs.keys(), arrays.keys())
    for name, array in arrays.items():
        kind = NUMPY[TYPES[specs[name].data_type]]
        assert array.dtype == kind, (name, array.dtype, kind)
        assert len(array.shape) == len(specs[name].dims), (name, array.shape)
        for size, said in zip(array.shape, specs[name].dims, strict=True):
            assert said in (-1, size), (name, array.shape)


class Tensor:
    def __init__(self, name, array):
        assert array.flags.c_contiguous
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class TritonError:
    INTERNAL, INVALID_ARG = "INTERNAL", "INVALID_ARG"

    def __init__(self, message, code):
        self._message, self._code = message, code

    def message(self):
        return self._message

    def code(self):
        return self._code


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self._tensors, self._error = list(output_tensors), error

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error

    def output_tensors(self):
        return self._tensors


class PreferredMemory:
    def __init__(self, kind, device):
        assert (kind, device) == (TRITONSERVER_MEMORY_CPU, 0)


class InferenceRequest:
    """A request to another model of the repository."""

    repository, ran = Path(), []

    def __init__(self, model_name, requested_output_names, inputs, preferred_memory):
        self.model, self.outputs, self._inputs = model_name, requested_output_names, inputs

    def inputs(self):
        return self._inputs

    def exec(self):
        folder = self.repository / self.model
        config, feed = config_of(folder), {t.name(): t.as_numpy() for t in self._inputs}
        check(config.input, feed)
        session = onnxruntime.InferenceSession(folder / "1" / "model.onnx")
        arrays = dict(zip(self.outputs, session.run(self.outputs, feed), strict=True))
        check(config.output, arrays)
        InferenceRequest.ran.append((self.model, len(next(iter(feed.values())))))
        return InferenceResponse([Tensor(name, array) for name, array in arrays.items()])


def get_input_tensor_by_name(request, name):
    return next((each for each in request.inputs() if each.name() == name), None)


def get_output_tensor_by_name(response, name):
    return next((each for each in response.output_tensors() if each.name() == name), None)


def serve(repository, name, given, answered):
    """Load a model as Triton's Python backend does, ask it twice, and write what it answers."""
    import triton_python_backend_utils as utils

    utils.InferenceRequest.repository = repository
    spec = importlib.util.spec_from_file_location("model", repository / name / "1" / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model, config = module.TritonPythonModel(), config_of(repository / name)
    model.initialize({"model_name": name, "model_version": "1"})
    with np.load(given) as file:
        arrays = {each: file[each] for each in file.files}
    check(config.input, arrays)
    request = utils.InferenceRequest(
        name, [], [utils.Tensor(*pair) for pair in arrays.items()], None
    )
    nan = np.float32("nan")  # of tokens an array of another type
    wrong = [utils.Tensor(n, array * nan) for n, array in arrays.items()]
    fine, refused = model.execute([request, utils.InferenceRequest(name, [], wrong, None)])
    assert refused.has_error()
    out = {each.name(): each.as_numpy() for each in fine.output_tensors()}
    check(config.output, out)
    np.savez(answered, **out)
    error = refused.error()
    print([rows for _, rows in utils.InferenceRequest.ran], error.code(), error.message())
    assert "multiexit" not in sys.modules


if __name__ == "__main__":
    serve(Path(sys.argv[1]), *sys.argv[2:])
