"""FSDP2: a network's parameters cut into shards, one on each process, and put together again.

torch's own part for this is imported where it is used: that takes as long as half of torch.
"""

from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast, fsdp2_prepare_model, recursively_apply
from torch import Tensor, nn

from multiexit.model.model import MultiExitModel

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

T = TypeVar("T")


def may_mix(accelerator: Accelerator, model: MultiExitModel) -> bool:
    """Whether mixed precision goes with how this network is spread: not BatchNorm with FSDP2."""
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    return not (norms and accelerator.is_fsdp2)


def shard(model: MultiExitModel, accelerator: Accelerator) -> MultiExitModel:
    """A copy with sharded parameters, on the device; the model itself stays whole where it is.

    The first process's parameters and buffers count. With the plugin's transformer-based policy
    each stage is gathered when it runs, and everything else when a pass begins.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    sharded: Any = deepcopy(model)
    for tensor in (*sharded.parameters(), *sharded.buffers()):
        tensor.data.copy_(broadcast(tensor.data.to(accelerator.device)))  # type: ignore[arg-type]
    stages = map(sharded.backbone.stage_module, range(sharded.backbone.num_stages))
    sharded._no_split_modules = sorted({type(stage).__name__ for stage in stages})
    plugin: Any = accelerator.state.fsdp_plugin
    # Every process already holds all parameters, and low-memory loading fails on buffers.
    plugin.cpu_ram_efficient_loading = False
    fsdp2_prepare_model(accelerator, sharded)
    for name in ("run", "cost"):  # what is called in place of forward
        register_fsdp_forward_method(sharded, name)
    return sharded


def gathered(tree: T) -> T:
    """Sharded tensors in nested dicts gathered; all processes must call it, with the same tree."""
    return recursively_apply(_gathered, tree)  # type: ignore[return-value]


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and buffers on the CPU, by name, each in its whole shape.

    All processes must call it.
    """
    return {name: _gathered(t.detach()).cpu().clone() for name, t in model.state_dict().items()}


def set_parameters(model: nn.Module, parameters: dict[str, Tensor]) -> None:
    """Load what `parameters` gave, sharded as the model is."""
    state = model.state_dict()
    model.load_state_dict(
        {name: _sharded_as(value, state[name]) for name, value in parameters.items()}
    )


def shard_state(state: dict[int, dict[str, Any]], parameters: list[nn.Parameter]) -> None:
    """Shard an optimiser's `state_dict()["state"]`, loaded whole, as its parameters are.

    Raises:
        IndexError: there are fewer parameters.
    """
    if not any(map(is_sharded, parameters)):
        return
    for index, values in state.items():
        p = parameters[index]
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                values[name] = _sharded_as(value, p)


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether this process has no more than a shard of a tensor."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor; of one that isn't sharded, all of it."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def _sharded_as(value: Tensor, like: Tensor) -> Tensor:
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def _gathered(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if is_sharded(tensor) else tensor
