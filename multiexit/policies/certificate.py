"""The certificate of a policy, kept with it.

Letters: N rows it was calibrated on, B rows of other outputs, M exits, E bins of confidence.
"""

import base64
import binascii
import re
import struct
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from multiexit.files import schema
from multiexit_runner.drift import BINS

LOSS = re.compile("disagreement|accuracy|brier|consistency|cosine|rank@([1-9][0-9]{0,8})")
"""The names of losses; `rank@k` has its k."""

OWN = re.compile("own:.{0,100}")
"""Names of losses of the user's own."""


def loss_name(key: str, value: Any) -> None:
    """A check that a value is the name of a loss."""
    schema.text(key, value)
    if LOSS.fullmatch(value) is None and OWN.fullmatch(value) is None:
        raise schema.wrong(
            key,
            value,
            "'disagreement', 'accuracy', 'brier', 'consistency', 'cosine', such as 'rank@10', or "
            "'own:' with a name",
        )


BOUND = {"loss": loss_name, "risk": schema.number(0, 1), "observed": schema.number(0, 1)}


TABLE = schema.table(
    {
        **BOUND,
        "confidence": schema.optional(schema.number(0, 1)),
        "rows": schema.whole(1, 2**53),
        "keys": schema.optional(schema.text),
    },
    {
        "counts": schema.listed(schema.listed(schema.whole(0, 2**53), BINS, BINS), 1, 10_000),
        "also": schema.listed(schema.table(BOUND), 1, 100),
    },
)
"""The schema of a saved certificate."""


class Bound(NamedTuple):
    """A loss's bound beside the first one, as in `Certificate`."""

    loss: str
    risk: float
    observed: float


@dataclass(frozen=True)
class Certificate:
    """A bound on what leaving early costs: on new rows the mean loss is at most the risk.

    It speaks of rows drawn as those it was calibrated on, and of the model as it was then,
    neither trained nor selected on them. `multiexit.calibrate` makes it, and its policy has it.

    Args:
        loss: `"disagreement"`, `"accuracy"`, `"brier"` or `"consistency"`, of vectors `"cosine"` or
            such as `"rank@10"` (`multiexit.evaluation.exit_losses.losses`); of your own `"own:"`
            and its name.
        risk: the bound.
        confidence: with which it holds; None: on average over draws of the calibration rows.
        rows: N.
        observed: the mean loss on these rows.
        keys: of these rows (`multiexit.Outputs`), sorted; None where they have none.
        counts: of these rows, by the exit where they left and the bin of their confidence there,
            M × E (`multiexit_runner.drift.bins_of`): what a service compares its rows with. None
            in certificates of before.
        also: other losses, bounded with the same confidence: all bounds hold at once.

    Example:
        Two exits that always agree, on 400 rows:

        >>> import torch, multiexit as mx
        >>> labels_B = torch.arange(400) % 2
        >>> logits_MBC = torch.nn.functional.one_hot(labels_B).float().expand(2, -1, -1)
        >>> cost = mx.Cost((1, 2), (10, 20), (5, 10), full_macs=20)
        >>> mx.calibrate(mx.Outputs(logits_MBC, labels_B, cost), mx.MaxProb, risk=0.05).certificate
        Certificate(loss='disagreement', risk=0.05, confidence=0.9, rows=400, observed=0.0)
    """

    loss: str
    risk: float
    confidence: float | None
    rows: int
    observed: float
    keys: tuple[int, ...] | None = field(default=None, repr=False)
    counts: tuple[tuple[int, ...], ...] | None = field(default=None, repr=False)
    also: tuple[Bound, ...] = field(default=(), repr=False)

    def seen(self, keys_B: Tensor) -> Tensor:
        """Say which of these rows it was calibrated on, bool [B].

        Args:
            keys_B: their keys, int64 [B].
        """
        return torch.isin(keys_B, torch.tensor(self.keys or (), dtype=torch.int64))

    def to_json(self) -> dict[str, Any]:
        """Give it as plain data; the keys as little-endian 64-bit numbers in base64."""
        keys = self.keys
        if keys is not None:
            keys = base64.b64encode(struct.pack(f"<{len(keys)}q", *keys)).decode()
        data = {**asdict(self), "keys": keys}
        del data["counts"], data["also"]
        if self.counts is not None:
            data["counts"] = [list(counts_E) for counts_E in self.counts]
        if self.also:
            data["also"] = [bound._asdict() for bound in self.also]
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Certificate":
        """Make the certificate that `to_json` gave.

        Raises:
            ValueError: another table, or keys that are no 64-bit numbers in base64.
        """
        TABLE("certificate", data)
        keys = data["keys"]
        if keys is not None:
            try:
                packed = base64.b64decode(keys, validate=True)
                keys = struct.unpack(f"<{len(packed) // 8}q", packed)
            except (binascii.Error, ValueError, struct.error) as error:
                raise ValueError(
                    f"certificate.keys is {schema.short(keys)}; it must be 64-bit numbers in base64"
                ) from error
        counts = data.get("counts")
        if counts is not None:
            counts = tuple(map(tuple, counts))
        also = tuple(Bound(**bound) for bound in data.get("also", ()))
        return cls(**{**data, "keys": keys, "counts": counts, "also": also})
