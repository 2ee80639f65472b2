"""Methods whose exits answer together."""

from multiexit.evaluation.experts import Experts
from multiexit.losses import coefficients
from multiexit.policies import Beem
from multiexit.recipes.base import Phase, Recipe


def beem(threshold: float = 1.0) -> Recipe:
    """PABEE's loss; exits vote, and weights and thresholds come from their errors (BEEM).

    Args:
        threshold: of the policy that training begins with; `multiexit.fit_experts` replaces it at
            the end.

    Inputs:
        Any head; one class a row; a dev set, which the weights and thresholds are found on. Another
        problem that has classes goes with another recipe and `Beem`, calibrated.

    Relations:
        Trains as `pabee`. `multiexit.fit_experts` ends any other method as this one ends.

    Example:
        >>> import multiexit as mx
        >>> mx.recipe("beem").policy
        Beem(threshold=1.0, weight=0.1)
    """
    return Recipe(
        name="beem",
        paper=(
            "Bajpai & Hanawal, BEEM: Boosting Performance of Early Exit DNNs using Multi-Exit "
            "Classifiers as Experts"
        ),
        section="abstract",
        year=2025,
        summary="PABEE's training; exits that agree add up their confidence, by their accuracy",
        phases=(Phase(coefficients=coefficients.depth_weighted),),
        policy=Beem(threshold),
        finish=Experts(),
    )
