"""The settings that an operator allows, and the dial that chooses among them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from multiexit_runner.choosing import NO_BOUNDS, NO_TABLE, bounds_speak_of, choose
from multiexit_runner.naming import OptionError
from multiexit_runner.server.budget import BudgetDial
from multiexit_runner.server.dial import Dial, LoadDial, Setting
from multiexit_runner.server.options import NO_LOSS, TURNING, Options
from multiexit_runner.server.orders import Order
from multiexit_runner.server.served import Served
from multiexit_runner.turning import typed_policy

log = logging.getLogger("multiexit.server")


def dial_of(served: Served, options: Options) -> Dial | None:
    """The dial of requests that have no policy of their own; None where there is none.

    Args:
        served: with its calibration table.
        options: of the operator.

    Raises:
        ValueError: a model without a table, or options that none of its settings meets.
    """
    if options.target_ms:
        return LoadDial(_allowed(served, options), options.target_ms / 1000)
    if options.budget_layers:
        return BudgetDial(_allowed(served, options), options.budget_layers)
    if options.budget_ms:
        return BudgetDial(_allowed(served, options), options.budget_ms, in_ms=True)
    return None


def place_of(order: Order, served: Served, settings: Sequence[Setting]) -> int | None:
    """The setting that an order with a policy of its own costs as much as; None without one.

    It is the fastest of those that are as slow, by their numbers; of another kind of policy, or
    where none is, the slowest. An order that ends at an exit costs no more than the layers up to
    there.
    """
    if not order.own:
        return None
    kinds = [said.partition("=")[0] for said in (order.said, settings[0].said)]
    own, numbers = served.numbers(order.policy), [served.numbers(each.policy) for each in settings]
    slowest, fastest = numbers[0], numbers[-1]

    def as_slow(those: Mapping[str, float]) -> bool:
        """Numbers fall from the slowest setting to the fastest, or rise, or are the same."""
        return all(
            those[name] == number or (those[name] - number) * (slowest[name] - fastest[name]) > 0
            for name, number in own.items()
        )

    slow = [p for p, those in enumerate(numbers) if kinds[0] == kinds[1] and as_slow(those)]
    layers = min(settings[max(slow, default=0)].mean_layers, served.exits[order.max_exit] + 1)
    return max((p for p, each in enumerate(settings) if each.mean_layers >= layers), default=0)


def without_certificate(served: Served) -> Served:
    """What is served where the policy is turned: a certificate is of one policy."""
    if served.certificate is not None:
        log.warning(
            "the certificate of %s is put aside: the policy of this service is turned",
            served.policy,
        )
    return replace(served, certificate=None)


def _allowed(served: Served, options: Options) -> list[Setting]:
    """The table's settings, from the slowest to the fastest, within the operator's bounds."""
    table = served.calibration
    name = next(name for name in TURNING if getattr(options, name))
    if table is None:
        again = ", and export again where this is an export"
        raise OptionError(f"{{{name}}}: {{}}", NO_TABLE.format(again=again))
    most = min(options.max_loss, _certified_loss(served.certificate, table, options))
    rows = table["settings"]
    if most < NO_LOSS:
        if None in [row["loss_bound"] for row in rows]:
            raise OptionError(
                "{max_loss}={:g}: {}; bound {min_score} in its place, or serve the float model",
                most,
                NO_BOUNDS,
            )
        choose(table, ("max_loss", most))  # refuses what no setting reaches
        if table["loss"] != table["metric"]:
            log.warning(
                "settings are kept to a loss of %g points of %s; of the table's score, %s, they "
                "may lose more: min_score bounds it",
                most,
                table["loss"],
                table["metric"],
            )
        rows = [row for row in rows if 100 * row["loss_bound"] <= most]
    best = max(row["score"] for row in rows)
    if options.min_score > best:
        percent = 1 < options.min_score <= 100 and best <= 1
        meant = f": did you mean {options.min_score / 100:g}?" if percent else ""
        raise OptionError(
            "no setting of the calibration table that is allowed has {min_score}={:g}: the best "
            "score observed on its rows ({}, a share) is {:.4g}{}",
            *(options.min_score, table["metric"], best, meant),
        )
    turned, own = (
        said.partition("=")[0] for said in (typed_policy(rows[0]["policy"]), served.policy)
    )
    if turned != own:
        log.warning(
            "%s turns %s, the policy of the calibration table; the model's own, %s, isn't used",
            name,
            turned,
            served.policy,
        )
    return [
        Setting(
            policy=served.restore(row["policy"]),
            said=typed_policy(row["policy"]),
            score=row["score"],
            loss_bound=row["loss_bound"],
            mean_layers=row["mean_layers"],
            shares_M=row["shares_M"],
            counts=row.get("counts"),
        )
        for row in rows
        if row["score"] >= options.min_score
    ]


def _certified_loss(
    certificate: Mapping[str, Any] | None, table: Mapping[str, Any], options: Options
) -> float:
    """The bound of the certificate, in points; that of no certificate is no bound.

    Where the table's bounds don't speak of it, the operator says what may be lost.

    Raises:
        ValueError: he doesn't.
    """
    if certificate is None:
        return NO_LOSS
    if bounds_speak_of(table, certificate):
        return 100 * certificate["risk"]
    if options.max_loss == NO_LOSS and options.min_score == -inf:
        raise OptionError(
            "the policy's certificate bounds {} with confidence {}, the settings of the "
            "calibration table {} with confidence {:g}: say with {max_loss} what the table's may "
            "lose, in points, or with {min_score} the lowest score observed, a share",
            *(certificate["loss"], certificate["confidence"], table["loss"], table["confidence"]),
        )
    return options.max_loss
