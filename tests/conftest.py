"""Networks small enough for every test, whose exits disagree enough to tell policies apart."""

import gc
import logging
import os
import signal
from functools import cache
from unittest.mock import patch

import pytest
import torch
from filelock import FileLock
from networks import MAKE

import multiexit as mx

# What tests share has asserts that tell what differs, as the tests' own do.
pytest.register_assert_rewrite("helpers", "encoders", "folders", "unrolled")
torch.set_num_threads(1)  # small tensors: more threads only wait for each other
gc.set_threshold(100_000)  # a search through all that the libraries made takes long
# pytest listens to loggers that don't propagate; heard, torch writes down all that it compiles.
logging.getLogger("torch.__trace").propagate = True


@pytest.fixture(autouse=True, scope="module")
def _frozen():
    """What was imported so far is not searched for garbage, which every run ends with."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def _text(rows: int) -> dict[str, torch.Tensor]:
    """Rows of 3 to 9 real tokens, padded with zeros, in two segments."""
    lengths = torch.arange(rows) % 7 + 3
    mask = torch.arange(9) < lengths.unsqueeze(1)
    return {
        "input_ids": torch.randint(5, 60, (rows, 9)) * mask,
        "attention_mask": mask.long(),
        "token_type_ids": (torch.arange(9) >= 2).long().expand(rows, 9) * mask,
    }


def _network(kind: str, num_classes: int, rows: int = 24):
    torch.manual_seed(1)
    model = mx.MultiExitModel(MAKE[kind](), num_classes).eval()
    inputs = {
        "resnet": lambda: {"x": torch.randn(rows, 3, 32, 32)},
        "mlp": lambda: {"x": 3 * torch.randn(rows, 6)},
    }.get(kind, lambda: _text(rows))()
    with torch.no_grad():  # at each exit some rows are sure and some are not
        for head, logits_BC in zip(model.heads, model(**inputs), strict=True):
            scale = 1.5 / logits_BC.std(0).clamp(min=1e-6)
            head.linear.bias.sub_(logits_BC.mean(0)).mul_(scale)
            head.linear.weight.mul_(scale.unsqueeze(1))
    return model, inputs


@pytest.fixture(scope="session", params=sorted(MAKE))
def network(request):
    """A model of three classes in evaluation mode, and 24 rows for it."""
    return _network(request.param, 3)


@pytest.fixture(scope="session", params=["bert", "mlp"])
def regressor(request):
    """A model of one output in evaluation mode, and 24 rows for it."""
    return _network(request.param, 1)


@pytest.fixture
def bert():
    """A fresh tiny BERT of three classes, and 6 padded rows."""
    return _network("bert", 3, rows=6)


@pytest.fixture
def mlp():
    """A fresh chain of five linear stages, three classes, and 24 rows."""
    return _network("mlp", 3)


@pytest.fixture
def make_backbone():
    """`make_backbone(kind)`: a fresh bert, albert, resnet or mlp."""
    return lambda kind: MAKE[kind]()


@pytest.fixture
def text():
    """`text(rows)`: padded token ids, masks and segments."""
    return _text


@pytest.fixture
def foreground():
    """Signals as in a shell's foreground: its background ignores Ctrl-C, and nohup SIGHUP."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# What takes seconds to make


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """`once(name, make)`: the path that `make(path)` made, once for all workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    root.mkdir(exist_ok=True)

    def get(name, make):
        path, part = root / name, root / f"{name}.part"
        with FileLock(root / f"{name}.lock"):
            if not path.exists():
                make(part)
                part.rename(path)
        return path

    return get


@pytest.fixture(scope="session")
def onnx_operators():
    """torch makes its table of ONNX operators anew for each graph: with this, once."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry as Registry
    except ImportError:  # another version keeps it elsewhere
        yield
        return
    with patch.object(Registry, "from_torchlib", staticmethod(cache(Registry.from_torchlib))):
        yield
