"""A run from end to end, as the command line does it: data, model, training, results."""

import inspect
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from multiexit import problems, recipes
from multiexit.arguments import check_share, first_of
from multiexit.backbones import Backbone, wrap
from multiexit.backbones.class_order import order_classes
from multiexit.data import glue, tasks
from multiexit.data.sources import canonical
from multiexit.data.splits import draw, holdout
from multiexit.data.tasks import TaskData
from multiexit.evaluation.history import History
from multiexit.losses.criterion import Criterion
from multiexit.model.heads import OwnHead, VectorHead
from multiexit.model.model import MultiExitModel
from multiexit.model.placement import Exits
from multiexit.recipes import Recipe
from multiexit.training import presets, text_rows
from multiexit.training.config import TrainConfig
from multiexit.training.trainer import Trainer
from multiexit_runner.user_line import user_level


def recipe_for(name: str, task: str, options: dict[str, Any]) -> Recipe:
    """Make a recipe with a task's own defaults.

    LeeBERT and its variants: τ = 4 for images, Table 3's cycle length for GLUE. A policy with a
    tolerance on regression: answers closer than 0.5 count as equal.

    Args:
        name: of the recipe.
        task: its name.
        options: of the recipe's function, in place of the defaults.

    Raises:
        ValueError: an unknown recipe or task, or options that the recipe refuses.
    """
    if name not in recipes.RECIPES:
        return recipes.recipe(name)  # says which there are
    recipe = recipes.recipe(name, **options)
    if recipes.RECIPES[name].__module__ == recipes.leebert.__module__:
        defaults: dict[str, Any] = {}
        options_of = inspect.signature(recipes.RECIPES[name]).parameters
        if tasks.modality(task) == "image":
            defaults["temperature"] = 4.0
        if "cycle" in options_of and canonical(task) in presets.TABLE_3:
            defaults["cycle"] = presets.TABLE_3[canonical(task)].cycle
        recipe = recipes.recipe(name, **{**defaults, **options})
    text = tasks.modality(task) == "text" and task not in tasks.OWN
    if text and glue.find_task(task).num_classes == 1:
        recipe = replace(recipe, policy=_with_tolerance(recipe.policy, 0.5))
    return recipe


def tolerant(recipe: Recipe, task: TaskData) -> Recipe:
    """The recipe, for numbers of a user's own: answers closer than a tenth of their range agree."""
    if task.problem != "regression":
        return recipe
    labels = task.train.labels
    tolerance = 0.1 * float(labels.max() - labels.min())
    return replace(recipe, policy=_with_tolerance(recipe.policy, tolerance))


def _with_tolerance(policy: Any, tolerance: float) -> Any:
    """The policy with this tolerance, if it takes one and has none."""
    lacks = getattr(policy, "tolerance", 0) is None
    return replace(policy, tolerance=tolerance) if lacks else policy


def config_for(task: str, schedule: str | None = None) -> TrainConfig:
    """The paper's settings for a task; `presets.texts` and `images` for a user's own, and small and
    quick ones for the digits.

    Args:
        task: its name.
        schedule: for images, see `multiexit.training.presets.cifar`; None is `"strong"`.

    Raises:
        ValueError: a schedule for text.
    """
    if tasks.modality(task) == "text":
        if schedule is not None:
            raise ValueError(f"schedule {schedule!r} is for images, and {task} is text: leave it")
        return presets.texts() if task == "text" else presets.glue(task)
    if task == "image":
        if schedule is not None:
            raise ValueError(f"schedule {schedule!r} is for CIFAR: leave it out")
        return presets.images()
    schedule = schedule or "strong"
    if canonical(task) == "digits":
        config = presets.cifar(schedule, epochs=30)
        return replace(config, batch_size=64, schedule="cosine", warmup=0.1, log_every=10)
    return presets.cifar(schedule)


def suited(task: str, backbone: Backbone) -> tuple[float | None, str | None]:
    """The rate and the pooling that suit a network, for texts of a user's own.

    Early exits know little at the first token, and most in the mean of all, so the mean takes the
    first one's place. The network's own head pools as it always did.

    Args:
        task: its name.
        backbone: from `backbone_for`.

    Returns:
        λ1, and a name for `multiexit.MultiExitModel`; each None where the task's or the network's
        own choice stays.
    """
    if task != "text":
        return None, None
    width = backbone.feature_shapes[-1][-1] or 384
    return presets.texts(width).lr, "mean" if backbone.pool == "first" else None


def validation_for(task: str, validation: float | None) -> float:
    """The share of train that selects the epoch.

    Args:
        task: its name.
        validation: what is asked for; None is a tenth for text and for images of one's own, and 0
            for other images: their last epoch is kept.

    Raises:
        ValueError: a share outside [0, 1).
    """
    if validation is None:
        return 0.1 if tasks.modality(task) == "text" or task in tasks.OWN else 0.0
    check_share("validation", validation, "[0, 1)")
    return validation


def check_classes(
    config: TrainConfig, recipe: Recipe, num_classes: int, problem: str | None
) -> None:
    """Refuse settings of the loss, and a recipe, that such classes don't go with.

    Raises:
        ValueError: with the setting; or with the recipe's policy, and the recipes that do.
    """
    Criterion(problem, config.label_smoothing, config.class_weights).check(num_classes)
    if _serves(recipe, num_classes, problem):
        return
    by_paper: dict[str, str] = {}
    for name, make in recipes.RECIPES.items():
        other = make()
        if _serves(other, num_classes, problem):
            by_paper.setdefault(other.paper, name)
    kind = problems.resolve(problem, num_classes)
    these = "numbers (regression)" if kind == "regression" else f"of {kind}"
    raise ValueError(
        f"{recipe.name!r} stops by {recipe.policy}, which can't serve these rows, whose labels are "
        f"{these}: give --recipe one of {', '.join(by_paper.values())}"
    )


def _serves(recipe: Recipe, num_classes: int, problem: str | None) -> bool:
    """Whether a recipe's policy goes with such classes; of numbers it is given a tolerance."""
    policy: Any = recipe.policy
    if problems.resolve(problem, num_classes) == "regression":
        if not all(getattr(phase.extra, "serves_regression", True) for phase in recipe.phases):
            return False
        policy = _with_tolerance(policy, 1.0)
    try:
        policy.init(torch.zeros(1, problems.classes_of_decision(problem, num_classes)))
    except ValueError:
        return False
    return ("vectors" in policy.reads) == problems.are_vectors(problem)


def balanced(task: TaskData) -> tuple[float, ...]:
    """The weights of classes n/(K·n_k), by which each of them counts as much as any other.

    Letters: n training rows, n_k of them of class k, K classes.

    Raises:
        ValueError: rows that haven't one class each.
    """
    problem = problems.resolve(task.problem, task.num_classes)
    if problem != "classification":
        raise ValueError(
            f"--class-weights balanced needs one class a row, and these rows are of {problem}: "
            "leave it out"
        )
    counts_K = torch.bincount(task.train.labels, minlength=task.num_classes).clamp(min=1)
    return tuple((len(task.train) / (len(counts_K) * counts_K.double())).tolist())


def check_validation(task: TaskData, share: float) -> int:
    """Refuse rows of which no such share can be held out, by a ValueError; give its rows."""
    rest, held = draw(task.train.labels, share, seed=0)
    if not len(rest) or not len(held):
        raise ValueError(
            f"of {len(rest) + len(held)} training rows a share of {share:g}, class by class, is "
            f"{len(held)}, and some must select the epoch: give more rows, another --validation, "
            "or --validation 0, which keeps the last epoch"
        )
    return len(held)


def backbone_for(
    task: TaskData,
    name: str | None,
    weights: str | None = None,
    seed: int = 0,
    pretrained: bool = False,
) -> Backbone:
    """Make the backbone of a name, for a task's inputs.

    Args:
        task: whose inputs it reads.
        name: as for `multiexit.wrap`; None is ALBERT-base for text, a CIFAR ResNet for images.
        weights: a file to start a CIFAR ResNet from.
        seed: of random weights.
        pretrained: whether a network of timm or torchvision comes with its weights, downloaded.

    Raises:
        ValueError: `weights` for anything but a CIFAR ResNet, no name for images of one's own, or
            what `multiexit.wrap` refuses.
    """
    torch.manual_seed(seed)
    text = task.preprocessing["kind"] == "text"
    images = "cifar-resnet-20" if task.name == "digits" else "cifar-resnet-56"
    if name is None and not text and task.known_as in tasks.OWN:
        raise ValueError(
            "images of your own need a backbone: --backbone timm:resnet18 --pretrained, "
            "torchvision:mobilenet_v3_small, …"
        )
    name = name or ("albert-base-v2" if text else images)
    resnet = name.startswith("cifar-resnet-")
    if pretrained and not name.startswith(("timm:", "torchvision:")):
        raise ValueError(f"pretrained is for timm:NAME and torchvision:NAME, not {name!r}")
    if weights and not resnet:
        raise ValueError(f"weights start a CIFAR ResNet; {name!r} brings its own")
    if text:
        return wrap(name)
    channels, size, _ = shape = task.preprocessing["shape"]
    if resnet:
        return wrap(name, weights=weights, in_channels=channels, size=size)
    if not pretrained:
        return wrap(name, input_shape=tuple(shape))
    if name.startswith("torchvision:"):
        return wrap(name, input_shape=tuple(shape), weights="DEFAULT")
    return wrap(name, input_shape=tuple(shape), pretrained=True)


def train(
    task: TaskData,
    backbone: Backbone,
    recipe: Recipe,
    config: TrainConfig,
    exits: Exits = "all",
    head: str | None = None,
    pool: str | None = None,
    validation: float = 0.0,
    tokenizer: Any = None,
) -> tuple[MultiExitModel, History]:
    """Put exits on a backbone and train them.

    New heads of regression begin at the labels' mean μ and spread σ: a last layer W·x + b becomes
    σ·(W·x + b) + μ.

    Args:
        task: its training set, classes and metric are used.
        backbone: from `backbone_for`.
        recipe: from `recipe_for`.
        config: the run's settings.
        exits, head, pool: of the model, as for `multiexit.MultiExitModel`; the head is by default
            the recipe's.
        validation: share of the training set that selects the best epoch instead of being
            trained on, so that the reported sets stay unseen; 0 keeps the last epoch.
        tokenizer: saved with the model.

    Returns:
        The trained model, and the history.

    Raises:
        ValueError: parts that don't go together, as `multiexit.Trainer` raises it; texts of any
            set that the network can't read.
    """
    text_rows.check(backbone, {"train": task.train, **task.sets})
    torch.manual_seed(config.seed)
    if task.labels is not None:
        order_classes(backbone, task.labels)
    model = MultiExitModel(
        backbone, task.num_classes, exits, head or recipe.head, pool, task.labels, task.problem
    )
    if task.preprocessing["kind"] == "text":
        _say_if_new(model)
    model.preprocessing = task.preprocessing
    rows, dev = task.train, None
    if validation:
        rows, dev = holdout(task.train, validation, config.seed)
    if model.problem == "regression":
        _begin_at(model, torch.as_tensor(rows.labels).double(), config.lr)
    settings = replace(config, metric=task.metric)
    return model, Trainer(model, recipe, settings, tokenizer).fit(rows, dev)


def _say_if_new(model: MultiExitModel) -> None:
    """Say that the network's own classifier doesn't serve, where the last exit would be that."""
    own, C = model.backbone.classifier, model.num_classes
    behind_all = model.exits[-1] == model.backbone.num_stages - 1
    if own is None or not behind_all or own.serves(model.problem, C):
        return
    K = own.num_classes
    has = _outputs(own.problem or problems.resolve(None, K), K)
    names = f": {first_of(own.labels)}" if own.labels else ""
    warnings.warn(
        f"the network's own classifier ({has}{names}) doesn't serve {_outputs(model.problem, C)}: "
        "the last exit starts anew",
        stacklevel=user_level(),
    )


def _outputs(problem: str, count: int) -> str:
    """So many outputs of a problem, in words."""
    called = {"multi-label": "labels, any number of them a row", "regression": "numbers"}
    return (
        "1 number"
        if (problem, count) == ("regression", 1)
        else (f"{count} {called.get(problem, 'classes')}")
    )


@torch.no_grad()
def _begin_at(model: MultiExitModel, labels_BC: Tensor, lr: float) -> None:
    """Let new heads begin at the mean and spread of labels, [B] or [B, C]."""
    mean_C = labels_BC.mean(0).reshape(-1)
    spread_C = labels_BC.std(0, correction=0).reshape(-1)
    spread_C[spread_C == 0] = 1
    if (least := float(spread_C.min())) < 0.1 * lr:
        warnings.warn(
            f"labels vary by {least:.1g}, and steps of lr={lr:g} are too long to learn that: give "
            f"labels in another unit, such as {1 / least:.0e} times as large",
            stacklevel=user_level(),
        )
    heads = [head for head in model.heads.modules() if isinstance(head, VectorHead)]
    for last in {head.linear for head in heads if not isinstance(head, OwnHead)}:
        if isinstance(last, nn.Linear):
            last.weight.mul_(spread_C[:, None])
            last.bias.mul_(spread_C).add_(mean_C)
