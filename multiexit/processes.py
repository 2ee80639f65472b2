"""The processes that train together, as `accelerate launch` or `torchrun` started them."""

from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

TIMEOUT = timedelta(minutes=10)
"""How long processes wait for one another before they give up."""


def processes() -> PartialState:
    """This process among the others; the first call joins them.

    A process that neither answers nor ends, ends the others after `TIMEOUT`. For another limit call
    `accelerate.PartialState(timeout=…)` before anything of multiexit: the first call decides.
    """
    # Not told so, accelerate takes the processes that torchrun starts on CPUs for runs of one each.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu, timeout=TIMEOUT)
