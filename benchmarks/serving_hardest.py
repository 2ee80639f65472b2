"""A service that runs what waits as one batch and answers when its hardest row has left.

`serving_load.py` compares with it: layers are skipped, but nothing joins or leaves in between. A
request may have a policy of its own, as there.
"""

import asyncio
import sys
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI

from multiexit_runner import Classifier
from multiexit_runner.answering import Encoded
from multiexit_runner.tokenizing import FIELDS

ROWS = 32
Asked = dict[str, Any]


def answers(classifier: Classifier, batch: list[Asked]) -> list[Any]:
    """The answers to requests, run together, each by its own threshold where it has one."""
    runner = classifier.runner
    encoded = classifier.tokenizer.encode_batch([asked["inputs"] for asked in batch])
    arrays = {
        name: np.array([getattr(row, FIELDS[name]) for row in encoded], spec["dtype"])
        for name, spec in runner.settings["inputs"].items()
    }
    own = [asked.get("policy", "").partition("=")[2] for asked in batch]
    threshold_B = [float(number or runner.knobs["threshold"]) for number in own]
    left = runner.predict(**arrays, knobs={"threshold": threshold_B})
    rows = zip(left.logits_BC, left.exit_B.tolist(), strict=True)
    return [classifier.say(logits_C, exit, Encoded({}), 1) for logits_C, exit in rows]


def app(classifier: Classifier) -> FastAPI:
    """The service; texts alone, one a request."""
    waiting: list[tuple[Asked, asyncio.Future[Any]]] = []
    came, service = asyncio.Event(), FastAPI()

    async def serve() -> None:
        while True:
            await came.wait()
            batch, waiting[:] = waiting[:ROWS], waiting[ROWS:]
            if not waiting:
                came.clear()
            said = await asyncio.to_thread(answers, classifier, [asked for asked, _ in batch])
            for (_, told), answer in zip(batch, said, strict=True):
                told.set_result(answer)

    @service.post("/predict")
    async def predict(request: Asked) -> dict[str, Any]:
        if not hasattr(service.state, "task"):
            service.state.task = asyncio.create_task(serve())
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting.append((request, told))
        came.set()
        answer = await told
        return {"answers": [{"label": answer["label"], "layers": answer["layers"]}]}

    return service


if __name__ == "__main__":
    folder, policy, port, threads = sys.argv[1:]
    classifier = Classifier.from_pretrained(folder, int(threads), policy=policy)
    uvicorn.run(app(classifier), port=int(port), log_level="error", access_log=False)
