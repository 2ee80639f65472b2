"""A static network as a model of one exit, its recipe, and how it compares with the full one."""

import copy

from torch import nn

from multiexit.backbones import Backbone
from multiexit.model.heads import ChainedHead, OwnHead
from multiexit.model.model import MultiExitModel
from multiexit.policies import FixedExit
from multiexit.recipes import Recipe
from multiexit.recipes.stages import NETWORK


def single_exit(model: MultiExitModel, backbone: Backbone | None = None) -> MultiExitModel:
    """A model of one exit, with a copy of another model's last head.

    Args:
        model: gives the head, classes, labels, calibration and preprocessing.
        backbone: what stands under the head, with the exit at its last stage; it takes over the
            model's own head, or none. None is the model's own, shared and not copied, with the
            exit where its last one is.

    Raises:
        ValueError: a last head that reads what earlier ones left, or a backbone of another width.

    Example:
        >>> import multiexit as mx
        >>> model = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=10)
        >>> mx.static.single_exit(model).exits
        (8,)
    """
    last = model.heads[-1]
    if isinstance(last, ChainedHead):
        raise ValueError(
            f"the last head, {type(last).__name__}, reads what earlier heads left; it can't stand "
            "alone: train with another head"
        )
    shape = model.backbone.feature_shapes[model.exits[-1]]
    trunk, exit = model.backbone, model.exits[-1]
    if backbone is not None:
        trunk, exit = backbone, backbone.num_stages - 1
        if backbone.feature_shapes[exit] != shape:
            raise ValueError(
                f"the head reads features {shape}, and this backbone gives "
                f"{backbone.feature_shapes[exit]}"
            )
        # A last exit that is the network's own head stays so, and no other becomes one.
        classifier = model.backbone.classifier if isinstance(last, OwnHead) else None
        trunk.set_classifier(copy.deepcopy(classifier))
    single = MultiExitModel(
        trunk, model.num_classes, [exit], model.head, model.pool, model.labels, model.problem
    )
    single.heads[0].load_state_dict(last.state_dict())
    single.temperature_M = nn.Buffer(model.temperature_M[-1:].clone())
    single.preprocessing = dict(model.preprocessing)
    single.training = model.training
    single.heads.train(last.training)
    return single


def fine_tune() -> Recipe:
    """CE of the last exit: ordinary fine-tuning, for networks of one exit (BERT, section 3.2).

    Inputs:
        A model of one exit, any head. Classes or regression. Of a model with more exits the last
        one is trained, and the policy stops at the first.

    Relations:
        The first phase of `deebert`, `fastbert` and `shallow_deep_heads`.

    Example:
        >>> import multiexit as mx
        >>> mx.static.fine_tune().phases == mx.recipe("deebert").phases[:1]
        True
    """
    return Recipe(
        name="fine-tune",
        paper="Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers",
        section="3.2",
        year=2019,
        summary="one exit learns from the labels",
        phases=(NETWORK,),
        policy=FixedExit(0),
    )
