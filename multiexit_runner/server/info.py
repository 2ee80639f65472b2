"""What `/info` says of a service."""

from typing import Any

from multiexit_runner.server.dial import Dial
from multiexit_runner.server.options import Options
from multiexit_runner.server.served import Served
from multiexit_runner.server.watch import Watch

HIDDEN = ("keys", "counts")
"""Of a certificate: what tells its rows."""


def info(
    served: Served, options: Options, policy: str, dial: Dial | None, watch: Watch
) -> dict[str, Any]:
    """What is served, and how. What a watch voided is null.

    Args:
        served: the network.
        options: of the operator.
        policy: of a request without one now, as it is typed.
        dial: that turns it, if one does.
        watch: of the certificate, or of the dial's settings.
    """
    certificate = settings = None
    if served.certificate is not None and watch.certified:
        certificate = {k: v for k, v in served.certificate.items() if k not in HIDDEN}
    if dial is not None:
        settings = [setting.info(holds=watch.alarm is None) for setting in dial.settings]
    return {
        "runtime": served.runtime,
        "reads": served.kind,
        "problem": served.problem,
        "labels": served.labels,
        "exits": len(served.exits),
        "layers": [layer + 1 for layer in served.exits],
        "options": options.info(),
        "policy": policy,
        "settings": settings,
        "certificate": certificate,
        "drift": watch.info(),
    }
