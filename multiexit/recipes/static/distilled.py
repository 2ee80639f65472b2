"""Distillation: a network of one exit learns from a fine-tuned one's answers.

Letters: B batch rows.
"""

from collections.abc import Sequence

from torch import Tensor

from multiexit.arguments import check_share
from multiexit.losses import coefficients
from multiexit.model.model import MultiExitModel
from multiexit.policies import FixedExit
from multiexit.recipes import Phase, Recipe, Seen
from multiexit.recipes.static.teaching import Teaching


def distillation(teacher: MultiExitModel, alpha: float = 0.5, temperature: float = 4.0) -> Recipe:
    """One exit learns from the labels and from a fine-tuned network's last exit (section 2).

        (1 − α)·CE + α·τ²/B·Σ_b KL(p_T^τ ‖ p_S^τ),    p^τ = softmax(logits / τ)

    What to compare early exits of images with: `MultiExitModel(copy.deepcopy(teacher.backbone), C,
    exits=[k])` is the whole network cut behind stage k, with a new head.

    Args:
        teacher: fine-tuned; its last exit teaches. It is run in evaluation mode, without
            gradients, where the student is, and is no part of the student.
        alpha: α in [0, 1].
        temperature: τ > 0. The paper gives no values; ours are usual ones.

    Inputs:
        Any network of one exit, any head, of the teacher's classes and inputs. Of a model with more
        exits the last one is trained, and the policy stops at the first.

    Relations:
        With `alpha=0` it trains as `fine_tune`.

    Raises:
        ValueError: values outside these ranges, or a teacher of another problem than
            classification; in training, a student of other classes, or one that trains the
            teacher's own parameters.

    Example:
        >>> import copy
        >>> import multiexit as mx
        >>> teacher = mx.MultiExitModel(mx.cifar_resnet(20), num_classes=10, exits=[8])
        >>> short = mx.MultiExitModel(copy.deepcopy(teacher.backbone), num_classes=10, exits=[3])
        >>> trainer = mx.Trainer(short, mx.static.distillation(teacher))
        >>> short.cost().params_M[0] < teacher.cost().params_M[0] / 5
        True
    """
    check_share("alpha", alpha, "[0, 1]")
    teaching = Teaching(teacher, temperature, "distillation", "static.fine_tune")

    def labels_part(teaches_MM: Tensor, progress: float, shares_M: Sequence[float]) -> Tensor:
        return (1 - alpha) * coefficients.last_only(teaches_MM, progress, shares_M)

    def answers_part(seen: Seen) -> Tensor:
        return alpha * temperature**2 * teaching.divergence(seen).sum(-1).mean()

    phase = Phase(
        coefficients=labels_part,
        train="last",
        extra=answers_part,
        before_step=teaching.check_apart,
    )
    return Recipe(
        name="distillation",
        paper="Hinton, Vinyals & Dean, Distilling the Knowledge in a Neural Network",
        section="2",
        year=2015,
        summary="one exit learns from the labels and from a whole network's answers",
        phases=(phase,),
        policy=FixedExit(0),
    )
