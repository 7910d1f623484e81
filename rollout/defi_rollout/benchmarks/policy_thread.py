"""A policy server in a thread of this process, for workers on this machine."""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from defi_rollout import batching, server


@contextlib.contextmanager
def serving(
    batcher: batching.Batcher, metadata: Mapping[str, Any], options: server.Options
) -> Iterator[str]:
    """Serves while the block runs, then closes the batcher; yields the server's URL.

    Raises:
        UserError: the address cannot be listened at.
    """
    ports: concurrent.futures.Future[int] = concurrent.futures.Future()
    loop = asyncio.new_event_loop()
    own = server.Server(batcher, metadata, options)

    def run() -> None:
        try:
            loop.run_until_complete(own.run(ports.set_result))
        except BaseException as error:
            if ports.done():
                raise
            ports.set_exception(error)
        finally:
            loop.close()

    thread = threading.Thread(target=run, name="policy server")
    thread.start()
    try:
        yield f"ws://{options.host}:{ports.result()}"
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(own.stop)
        thread.join()
        batcher.close()
