"""sentence-transformers' side of `backends.py`, in an environment of its own.

    python benchmarks/backends_theirs.py FOLDER

FOLDER has `encoder` (a network of transformers and its tokenizer), `head.npz` (the classifier on
its mean-pooled vectors), `texts.json` and `rows/train.csv`, by which int8 is calibrated. A line of
JSON on stdin, {"what": …, "rows": …, "batch": …}, is answered by a line with the labels and the
processor's seconds; the first line out lists what there is. What was made before is loaded. What
can't be made is left out, with the reason on stderr.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

ONNX_INT8 = "avx512_vnni"


def made(folder: Path) -> dict[str, Any]:
    """Encoders by name, each as sentence-transformers documents it."""
    st: Any = import_module("sentence_transformers")  # of that environment alone
    parts: Any = import_module("sentence_transformers.models")
    place = str(folder / "st")
    words = parts.Transformer(str(folder / "encoder"), max_seq_length=128)
    plain = st.SentenceTransformer(
        modules=[words, parts.Pooling(words.get_word_embedding_dimension(), "mean")],
        device="cpu",
    )
    plain.save_pretrained(place)
    encoders: dict[str, Any] = {"torch": plain}

    def load(backend: Any, **options: Any) -> Any:
        if backend == "onnx":  # else the first that is there, which may be a service's
            options["provider"] = "CPUExecutionProvider"
        return st.SentenceTransformer(place, backend=backend, device="cpu", model_kwargs=options)

    def export(backend: str) -> None:
        load(backend, export=True).save_pretrained(place)

    def onnx_o3() -> None:
        st.export_optimized_onnx_model(encoders["ONNX"], "O3", place)

    def onnx_int8() -> None:
        st.export_dynamic_quantized_onnx_model(encoders["ONNX"], ONNX_INT8, place)

    def openvino_int8() -> None:
        rows = [str(folder / "rows"), "default", "train", "sentence"]
        source = load("openvino", file_name="openvino/openvino_model.xml")  # which this changes
        st.export_static_quantized_openvino_model(source, None, place, *rows)

    ways: dict[str, tuple[str, Callable[[], None]]] = {
        "ONNX": ("onnx/model.onnx", lambda: export("onnx")),
        "ONNX O3": ("onnx/model_O3.onnx", onnx_o3),
        "ONNX int8": (f"onnx/model_qint8_{ONNX_INT8}.onnx", onnx_int8),
        "OpenVINO": ("openvino/openvino_model.xml", lambda: export("openvino")),
        "OpenVINO int8": ("openvino/openvino_model_qint8_quantized.xml", openvino_int8),
    }
    for name, (file, make) in ways.items():
        try:
            if not Path(place, file).exists():
                make()
            encoders[name] = load(file.partition("/")[0], file_name=file)
        except Exception as error:  # of many kinds, where a library lacks something
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
    return encoders


def main(folder: Path) -> None:
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    head = np.load(folder / "head.npz")
    out, sys.stdout = sys.stdout, sys.stderr  # what the libraries print is no answer
    encoders = made(folder)
    print(json.dumps(list(encoders)), file=out, flush=True)

    def labels(x_NH: Any) -> list[int]:
        hidden_NH = np.tanh(np.asarray(x_NH) @ head["pooler.weight"].T + head["pooler.bias"])
        return (hidden_NH @ head["linear.weight"].T + head["linear.bias"]).argmax(1).tolist()

    for line in sys.stdin:
        asked = json.loads(line)
        encoder, some = encoders[asked["what"]], texts[: asked["rows"]]
        began = time.process_time()
        if asked["batch"] == 1:
            said = [labels(encoder.encode([text], show_progress_bar=False))[0] for text in some]
        else:
            said = labels(encoder.encode(some, batch_size=asked["batch"], show_progress_bar=False))
        print(json.dumps([said, time.process_time() - began]), file=out, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
