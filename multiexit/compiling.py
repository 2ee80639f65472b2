"""`torch.compile` for functions of which many graphs are made."""

from typing import Any

import torch


def compiled(function: Any, graphs: int, **how: Any) -> Any:
    """`torch.compile`, with room for as many graphs; torch gives up at 8.

    Args:
        function: what is compiled.
        graphs: how many there may be, for all compiled functions of the process.
        how: what else `torch.compile` takes.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, graphs)
    return torch.compile(function, **how)
