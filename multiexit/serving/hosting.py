"""What `multiexit serve` serves, for other servers too."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from multiexit.files.paths import user_path
from multiexit.serving.classifier import Classifier
from multiexit.serving.stepping import of_model
from multiexit_runner.folder import SETTINGS as EXPORT
from multiexit_runner.naming import OptionError
from multiexit_runner.server.options import Options, words
from multiexit_runner.server.serve import load_export
from multiexit_runner.server.served import Served

if TYPE_CHECKING:
    from multiexit_runner.server.app import Service


def service(folder: str | Path, options: Options | None = None) -> "Service":
    """The service of `multiexit serve`: its `app` is for any ASGI server.

    Args:
        folder: a model, run or export.
        options: of the service, without those that say where it listens.

    Returns:
        The service. Its network runs from the app's start-up (the lifespan of ASGI) to its end.

    Raises:
        ValueError: what can't be served.

    Example:
        >>> import tempfile, multiexit as mx
        >>> from multiexit.serving import service
        >>> model = mx.MultiExitModel(mx.cifar_resnet(20), 2, labels=["cat", "dog"])
        >>> model.preprocessing = {
        ...     "kind": "image", "shape": [3, 32, 32], "mean": [0.5] * 3, "std": [0.25] * 3}
        >>> model.policy = mx.MaxProb(0.9)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     print(service(folder).app.title)
        multiexit
    """
    from multiexit_runner.server.app import Service

    options = options or Options()
    return Service(load(user_path(folder), options), options)


def load(folder: Path, options: Options) -> Served:
    """A model or an export, to be served.

    Raises:
        ValueError: what can't be served.
    """
    if (folder / EXPORT).exists():
        return load_export(folder, options)
    for name in ("backend", "providers"):
        if value := getattr(options, name):
            raise OptionError(
                f"{{{name}}}={{}} is for an export, and {{}} is run by torch: leave it out, or "
                "serve what `multiexit export` wrote",
                *(value, folder),
            )
    if options.threads:
        torch.set_num_threads(options.threads)
    classifier = Classifier.from_pretrained(folder, options.policy or None)
    assert isinstance(classifier, Classifier)
    return of_model(classifier, words(options.policies))
