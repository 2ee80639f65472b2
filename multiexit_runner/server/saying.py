"""What a service says, described for its OpenAPI page and for generated clients."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from multiexit_runner.server.lines import LINES


class Row(BaseModel):
    """The answer to one input, with keys by what the network says of it."""

    model_config = ConfigDict(extra="allow")

    label: Any = Field(None, description="The likeliest class, where each row has one")
    score: float | None = Field(None, description="Its probability")
    labels: list[Any] | None = Field(None, description="Of several labels, or of the words")
    scores: Any = Field(None, description="Probabilities by class, or of the words")
    value: float | None = Field(None, description="A number, in regression; or `values`")
    exit: int = Field(description="Where the row left, counted from 0")
    layers: int = Field(description="Layers up to there")
    stages: list[int] = Field(description="The segments that were run on this row")
    why: str = Field(description="What made it leave: policy, last_exit, max_exit or budget")
    milliseconds: float = Field(description="From its joining the queue to its leaving")
    cut: bool = Field(False, description="Whether the text fills all tokens that are read")


class Whole(BaseModel):
    """What holds for all rows of a request."""

    policy: str = Field(description="By which the rows left, as it is typed")
    certified: bool = Field(description="Whether the policy's certificate holds for this request")
    expected_score: float | None = Field(
        None,
        description="As observed on the calibration rows, a share such as 0.84; null once rows "
        "drift",
    )
    loss_bound: float | None = Field(
        None,
        description="The calibration table's bound on the accuracy (of vectors the cosine) that is "
        "lost, a share: 0.005 is half a point; null once rows drift",
    )
    drift: bool = Field(
        False,
        description="Whether the service's rows leave otherwise than at calibration: nothing that "
        "was calibrated holds any more",
    )


class Answers(Whole):
    """The answers to a request, in its order."""

    answers: list[Row] = Field(description="One for each input")


class RowLine(Row):
    """The line of a row that left."""

    row: int = Field(description="Its place in the request, counted from 0")


class BrokenLine(BaseModel):
    """A row on which the network fails; without `row` the last line of an answer cut short."""

    row: int | None = Field(None, description="Its place in the request, counted from 0")
    error: str = Field(description="In a sentence")


class LastLine(Whole):
    """The last line."""

    done: Literal[True] = Field(description="Each row has had its line")


class Refusal(BaseModel):
    """Why a request is refused."""

    detail: str = Field(description="In a sentence")


REFUSED = {
    400: "What is no JSON",
    408: "A body that doesn't come in time",
    413: "A body too large, or more inputs than there is room for",
    415: "Another content type than application/json or …+json, or a body in gzip or such",
    422: "Inputs or wishes that can't be read, or aren't allowed",
    429: "A full queue; Retry-After says when to come again",
    500: "Rows on which the network fails",
    503: "A service that doesn't run, or sheds; Retry-After says when to come again",
}
HEADERS = {
    "X-Multiexit-Certified": "As `certified`, which of lines the last one has alone",
    "X-Multiexit-Policy": "As `policy`",
    "X-Request-ID": "That of the request, or a new one",
}

RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Answers,
        "description": "The answers",
        "content": {
            LINES: {
                "schema": {
                    "description": f"With Accept: {LINES} a line for each row as soon as it has "
                    "left: what `answers` has, with `row`, its place in the request, or `error`; "
                    "and a last line that has `done` and what else an answer has",
                    "anyOf": [line.model_json_schema() for line in (RowLine, BrokenLine, LastLine)],
                }
            }
        },
        "headers": {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in HEADERS.items()
        },
    },
    **{status: {"model": Refusal, "description": text} for status, text in REFUSED.items()},
}
"""Of /predict, by status."""
