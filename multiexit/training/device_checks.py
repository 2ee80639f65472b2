"""Refusals of devices, and of ways to spread a run over them, before it begins."""

from typing import Any

from accelerate import Accelerator

from multiexit.model.model import MultiExitModel
from multiexit.recipes import Recipe
from multiexit.training import sharding
from multiexit.training.config import TrainConfig


def check_devices(
    accelerator: Accelerator, model: MultiExitModel, recipe: Recipe, config: TrainConfig
) -> None:
    """Refuse ways of spreading that training doesn't know, and what devices can't train.

    Args:
        accelerator: of the run, which knows how it was launched.
        model, recipe, config: of the run.

    Raises:
        ValueError: fp16 on a CPU; FSDP of version 1, DeepSpeed, …; under FSDP2 surgery or
            hypergradients, BatchNorm in mixed precision, and options of the training pass.
    """
    if config.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("mixed_precision='fp16' needs a GPU; on a CPU use 'bf16' or 'no'")
    kind = accelerator.distributed_type.value
    if kind != "NO" and not kind.startswith("MULTI_") and not accelerator.is_fsdp2:
        raise ValueError(
            f"this run was launched as {kind}; training knows DDP and FSDP2: launch it with "
            "--multi_gpu, or with --use_fsdp --fsdp_version 2"
        )
    if not accelerator.is_fsdp2:
        return
    for option in ("compile", "channels_last", "ema"):
        if getattr(config, option):
            raise ValueError(
                f"{option} is not known to go with FSDP2: leave it out, or train with DDP "
                "(--multi_gpu)"
            )
    from torch.distributed.fsdp import CPUOffloadPolicy  # which takes a second to import

    plugin: Any = accelerator.state.fsdp_plugin
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError("sharded parameters stay on their devices: set fsdp_offload_params: false")
    if plugin.activation_checkpointing:  # it would draw other dropout when it computes again
        raise ValueError(
            "activations are computed again by checkpoint_gradients=True: "
            "set that, and fsdp_activation_checkpointing: false"
        )
    if accelerator.mixed_precision != "no" and not sharding.may_mix(accelerator, model):
        raise ValueError(
            f"FSDP2 makes BatchNorm's weights {accelerator.mixed_precision} and leaves its "
            "statistics float32, which BatchNorm refuses: set mixed_precision='no', or train with "
            "DDP (--multi_gpu)"
        )
    for index, phase in enumerate(recipe.phases):
        if phase.surgery is not None or phase.learner.looks_back:
            what = "gradient surgery" if phase.surgery is not None else "hypergradients"
            raise ValueError(
                f"phase {index} of {recipe.name!r} uses {what}, which needs whole parameters, and "
                "FSDP2 shards them: train it with DDP (--multi_gpu)"
            )
