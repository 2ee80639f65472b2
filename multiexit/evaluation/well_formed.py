"""Whether the tensors of `Outputs` go together: one check for all that is made of them.

Letters: M exits, B rows, T tokens, C classes, P decisions of a row.
"""

from torch import Tensor

from multiexit import problems
from multiexit.losses.labels import check_label_shape, check_labels
from multiexit.model.cost import Cost
from multiexit.model.finite import NotFinite

WHERE = "the data set"


def check_outputs(
    logits_MBC: Tensor,
    labels_B: Tensor,
    cost: Cost,
    certainty_MB: Tensor | None,
    keys_B: Tensor | None,
    problem: str | None,
    asked_BT: Tensor | None,
) -> None:
    """Refuse what `multiexit.Outputs` can't be made of.

    Args:
        logits_MBC, labels_B, cost, certainty_MB, keys_B, problem, asked_BT: its fields.

    Raises:
        ValueError: no tensors, shapes that don't go together, labels that are none of the classes,
            or logits that say nothing: NaN, +inf, or −inf for all of a decision's classes. Of some
            classes −inf says that they are out of the question.
    """
    dims = "[M, B, T, C]" if problem == "token-classification" else "[M, B, C]"
    good = isinstance(logits_MBC, Tensor) and logits_MBC.is_floating_point()
    if not good or logits_MBC.ndim != dims.count(",") + 1 or not len(logits_MBC):
        array = hasattr(logits_MBC, "__array__")
        raise ValueError(
            f"logits are a tensor of floats {dims}, of an exit at least; got "
            + (f"{logits_MBC.dtype} {[*logits_MBC.shape]}" if array else f"{logits_MBC!r:.80}")
            + (": torch.from_numpy(logits)" if array and not isinstance(logits_MBC, Tensor) else "")
        )
    M, B, C = len(logits_MBC), logits_MBC.shape[1], logits_MBC.shape[-1]
    problem = problems.resolve(problem, C)
    if not isinstance(cost, Cost) or len(cost.layers_M) != M or len(cost.macs_M) != M:
        got = f"one of {len(cost.layers_M)}" if isinstance(cost, Cost) else type(cost).__name__
        raise ValueError(
            f"the logits are of {M} exits, and the cost must be a Cost of {M}; got {got}"
        )
    _check_logits(logits_MBC, problem)
    check_labels(labels_B, C, WHERE, problem, soft=False)
    check_label_shape(labels_B, logits_MBC.shape[1:], problem, WHERE)
    if asked_BT is not None and problem != "token-classification":
        raise ValueError(f"asked_BT is of tokens, and the problem is {problem!r}: leave it out")
    for name, tensor, shape, kind in (
        ("certainty_MB", certainty_MB, (M, B), "float"),
        ("keys_B", keys_B, (B,), "int64"),
        ("asked_BT", asked_BT, tuple(logits_MBC.shape[1:-1]), "bool"),
    ):
        good = isinstance(tensor, Tensor) and tensor.shape == shape and kind in str(tensor.dtype)
        if tensor is not None and not good:
            got = getattr(tensor, "dtype", type(tensor)), [*getattr(tensor, "shape", ())]
            raise ValueError(f"{name} must be {kind}, a tensor {[*shape]}; got {got[0]} {got[1]}")


def _check_logits(logits_MBC: Tensor, problem: str) -> None:
    """Refuse an exit's logits of a row by which there is no answer."""
    kind = problems.PROBLEMS[problem]
    most_MBP = kind.split(logits_MBC.abs() if kind.vectors else logits_MBC).amax(-1)
    bad_MB = ~most_MBP.isfinite().all(-1)
    if bad_MB.any():
        exit, row = bad_MB.nonzero()[0].tolist()
        logits_C = logits_MBC[exit, row]
        if logits_C.ndim == 2:  # the row's tokens
            logits_C = logits_C[~most_MBP[exit, row].isfinite()][0]
        raise NotFinite(exit, row, logits_C.tolist())
