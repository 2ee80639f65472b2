"""Training methods by name."""

from collections.abc import Callable
from typing import Any

from multiexit.arguments import unknown
from multiexit.recipes.base import Recipe
from multiexit.recipes.consistent import consistentee
from multiexit.recipes.cosee import cosee
from multiexit.recipes.experts import beem
from multiexit.recipes.labels import (
    berxit,
    branchynet,
    elasticbert,
    joint,
    l2w_den,
    msdnet,
    pabee,
    pcee,
    right_tool,
    shallow_deep,
)
from multiexit.recipes.leebert import (
    fastbert_clo_v2,
    leebert,
    leebert_blo,
    leebert_clo_v1,
    leebert_group_dro,
    leebert_hyper,
    leebert_lle,
    leebert_rand,
    leebert_slo,
    leebert_uniform,
)
from multiexit.recipes.options import check_options
from multiexit.recipes.stages import deebert, fastbert, mixed, shallow_deep_heads, ztw
from multiexit.recipes.teachers import dbt, romebert
from multiexit.recipes.vectors import embedding

RECIPES: dict[str, Callable[..., Recipe]] = {
    "leebert": leebert,
    "leebert-lle": leebert_lle,
    "leebert-rand": leebert_rand,
    "leebert-uniform": leebert_uniform,
    "leebert-slo": leebert_slo,
    "leebert-blo": leebert_blo,
    "leebert-clo-v1": leebert_clo_v1,
    "leebert-hyper": leebert_hyper,
    "leebert-group-dro": leebert_group_dro,
    "fastbert-clo-v2": fastbert_clo_v2,
    "joint": joint,
    "branchynet": branchynet,
    "msdnet": msdnet,
    "shallow-deep": shallow_deep,
    "shallow-deep-heads": shallow_deep_heads,
    "dbt": dbt,
    "deebert": deebert,
    "fastbert": fastbert,
    "pabee": pabee,
    "right-tool": right_tool,
    "berxit": berxit,
    "romebert": romebert,
    "ztw": ztw,
    "elasticbert": elasticbert,
    "pcee": pcee,
    "l2w-den": l2w_den,
    "consistentee": consistentee,
    "mixed": mixed,
    "beem": beem,
    "cosee": cosee,
    "embedding": embedding,
}


def recipe(name: str, **options: Any) -> Recipe:
    """Make the recipe of a name.

    Args:
        name: a key of `multiexit.recipes.RECIPES`, as on the command line.
        options: the arguments of that recipe's function.

    Raises:
        ValueError: an unknown name, an option that the recipe doesn't have, or a value of another
            kind than the option's, or that its function refuses.

    Example:
        >>> import multiexit as mx
        >>> recipe = mx.recipe("leebert-lle", temperature=4.0)
        >>> recipe.policy, recipe.phases[0].temperature
        (Patience(patience=4, tolerance=None), Constant(value=4.0))
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    check_options(name, RECIPES[name], options)
    return RECIPES[name](**options)
