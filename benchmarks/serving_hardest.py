"""A service that runs what waits as one batch and answers when its hardest row has left.

`serving_load.py` compares with it: layers are skipped, but nothing joins or leaves in between.
"""

import asyncio
import sys
from typing import Any

import uvicorn
from fastapi import FastAPI

from multiexit_runner import Classifier

ROWS = 32


def app(classifier: Classifier) -> FastAPI:
    """The service; texts alone, one a request."""
    waiting: list[tuple[str, asyncio.Future[Any]]] = []
    came, service = asyncio.Event(), FastAPI()

    async def serve() -> None:
        while True:
            await came.wait()
            batch, waiting[:] = waiting[:ROWS], waiting[ROWS:]
            if not waiting:
                came.clear()
            answers = await asyncio.to_thread(classifier, [text for text, _ in batch])
            for (_, asked), answer in zip(batch, answers, strict=True):
                asked.set_result(answer)

    @service.post("/predict")
    async def predict(request: dict[str, Any]) -> dict[str, Any]:
        if not hasattr(service.state, "task"):
            service.state.task = asyncio.create_task(serve())
        asked: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        waiting.append((request["inputs"], asked))
        came.set()
        answer = await asked
        return {"answers": [{"label": answer["label"], "layers": answer["layers"]}]}

    return service


if __name__ == "__main__":
    folder, policy, port, threads = sys.argv[1:]
    classifier = Classifier.from_pretrained(folder, int(threads), policy=policy)
    uvicorn.run(app(classifier), port=int(port), log_level="error", access_log=False)
