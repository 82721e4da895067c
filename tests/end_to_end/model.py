"""The scripted model beside a test that does not run in its event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from treadle.scripted_model import Script, ScriptedModel


class Model:
    """`with Model(scripts, api_key=…) as model:` serves from a thread until the block ends."""

    def __init__(self, scripts: dict[str, Script], *, api_key: str) -> None:
        self._model = ScriptedModel(scripts, api_key=api_key)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> ScriptedModel:
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._model.__aenter__(), self._loop).result(60)

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._model.__aexit__(None, None, None), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()


def answers(body: dict[str, Any]) -> list[Any]:
    """What a request says that the model has said so far: the content of each of its answers."""
    return [message["content"] for message in body.get("messages", ()) if message.get("role") == "assistant"]
