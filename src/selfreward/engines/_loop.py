"""An event loop in a thread of its own: asynchronous work behind an interface that is not asynchronous."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines until it is closed. The thread never keeps a program alive."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="selfreward-endpoint", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end and return its result or raise its error."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def start(self, work: Coroutine[Any, Any, None], when_done: Callable[[], None]) -> "asyncio.Task[None]":
        """Begin a coroutine and return its task; `when_done` is called in the thread once it ended, whatever the end."""

        async def begin() -> "asyncio.Task[None]":
            task = asyncio.get_running_loop().create_task(work)
            task.add_done_callback(lambda _: when_done())
            return task

        return self.call(begin())

    def stop(self, task: "asyncio.Task[None]") -> None:
        """Cancel a task and wait until it ended. Its error, if it has one, counts as seen."""
        if not task.done():
            self.call(_cancel(task))
        if not task.cancelled():
            task.exception()

    def stop_all(self) -> None:
        """Cancel all tasks and wait until they ended."""
        self.call(_cancel_others())

    def close(self) -> None:
        """End the thread; stop its tasks first."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
        finally:
            self._loop.close()


async def _cancel(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def _cancel_others() -> None:
    await _cancel(*(asyncio.all_tasks() - {asyncio.current_task()}))
