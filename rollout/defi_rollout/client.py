"""A policy behind a server: the same two methods as `Policy`, over openpi's protocol.

    client = Client("ws://127.0.0.1:8000")
    actions = client.infer({"observation/image": image, "prompt": "open the drawer"})["actions"]

Connects to `python -m defi_rollout serve` and to openpi's own server. Needs only numpy, msgpack and
websockets; runs on Python 3.8. The server's bytes are decoded as strictly as a client's.

Legend: S action-chunk length, A action dimension.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import websockets.exceptions
import websockets.version
from websockets.sync import client as websocket

from defi_rollout import __version__, errors, noise, wire

USER_AGENT = "defi-rollout/"

_MAX_MESSAGE_BYTES = 64 << 20
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds between attempts to connect
# No pings: openpi's server answers none during a call. Before version 15 there were none anyway.
_NO_PINGS = {"ping_interval": None} if int(websockets.version.version.split(".")[0]) >= 15 else {}
_log = logging.getLogger(__name__)


class ConnectionLost(errors.UserError):
    """The server cannot be reached, does not answer in time, or went away. Hold the robot still."""

    exit_code = 74


class ServerError(errors.UserError):
    """The server refused the observation or failed; says what it sent."""


class Client:
    """A policy behind `url`; safe to call from several threads, one call at a time.

    Args:
        url: such as "ws://robot-server:8000".
        token: of the server, where it wants one.
        connect_timeout: seconds to wait for a server that is not there yet.
        infer_timeout: seconds to wait for an answer; a server may compile at the first call.

    Attributes:
        metadata: what the server said about its policy.

    Raises:
        ConnectionLost: nobody answers at `url` in time.
        UserError: the server wants another token, or does not speak the protocol.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        connect_timeout: float = 60.0,
        infer_timeout: float = 120.0,
    ):
        self._url = url if url.startswith(("ws://", "wss://")) else "ws://" + url
        self._token = token
        self._connect_timeout, self._infer_timeout = connect_timeout, infer_timeout
        self._lock = threading.Lock()
        self._reset: bool | int = False
        self._connection: Any = None
        self.metadata: dict[str, Any] = {}
        self._connect()

    def infer(self, obs: Mapping[str, Any]) -> dict[str, Any]:
        """Sends an observation and returns the answer, after a lost connection over a new one.

        Args:
            obs: as `metadata["obs_spec"]` says; keys below "_defi/" go to servers of ours only.

        Returns:
            "actions": float32 [S, A] (or batched), and the server's timings.

        Raises:
            ServerError: the server refused the observation.
            ConnectionLost: no answer in time, or the connection broke. Nothing is sent twice.
            UserError: the observation cannot be sent, or the answer is malformed.
        """
        with self._lock:
            if self._connection is None:
                self._connect()
            is_ours = "bundle" in self.metadata
            sent = {k: v for k, v in obs.items() if is_ours or not k.startswith(noise.PREFIX)}
            if is_ours and self._reset is not False:
                sent.setdefault(noise.RESET, self._reset)
            answer = self._exchange(wire.pack(sent))
            self._reset = False
        return self._checked(answer)

    def reset(self, seed: int | None = None) -> None:
        """Starts a new episode: the server's noise begins again at the next `infer`.

        Servers of others, which know no reset, are not told.
        """
        self._reset = True if seed is None else seed

    def close(self) -> None:
        """Ends the connection; the next `infer` opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _connect(self) -> None:
        deadline = time.monotonic() + self._connect_timeout
        pause = _FIRST_PAUSE
        while True:
            try:
                self._connection = self._open()
                self.metadata = self._greeting()
                return
            except websockets.exceptions.InvalidStatus as error:
                status = error.response.status_code
                if status in (401, 403):
                    raise errors.UserError(
                        "the server refuses this token", self._url, "give the server's token"
                    ) from error
                reason = f"status {status}"
            except websockets.exceptions.InvalidURI as error:
                raise errors.UserError("not an address", self._url, "ws://HOST:PORT") from error
            except (OSError, websockets.exceptions.WebSocketException) as error:
                reason = str(error) or type(error).__name__
            if time.monotonic() + pause > deadline:
                raise ConnectionLost(
                    f"no policy server answers ({reason})",
                    self._url,
                    "start one: python -m defi_rollout serve BUNDLE",
                )
            _log.info("waiting for %s (%s)", self._url, reason)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _open(self) -> Any:
        headers = {} if self._token is None else {"Authorization": "Api-Key " + self._token}
        return websocket.connect(
            self._url,
            compression=None,
            max_size=_MAX_MESSAGE_BYTES,
            additional_headers=headers,
            user_agent_header=USER_AGENT + __version__,
            open_timeout=10,
            **_NO_PINGS,
        )

    def _greeting(self) -> dict[str, Any]:
        message = self._connection.recv(timeout=self._infer_timeout)
        metadata = None if isinstance(message, str) else wire.unpack(message)
        if not isinstance(metadata, dict):
            self.close()
            raise errors.UserError("does not greet like openpi", self._url, "check the port")
        return metadata

    def _exchange(self, message: bytes) -> bytes:
        try:
            self._connection.send(message)
            answer = self._connection.recv(timeout=self._infer_timeout)
        except (OSError, websockets.exceptions.WebSocketException) as error:
            self._drop()
            is_late = isinstance(error, TimeoutError)
            late, broken = f"no answer within {self._infer_timeout:g} s", "the connection broke"
            what = late if is_late else f"{broken} ({error})"
            raise ConnectionLost(what, self._url, "look at the server's log") from error
        if isinstance(answer, str):
            if "bundle" not in self.metadata:  # openpi's server hangs up after an error
                self._drop()
            raise ServerError("the server says: " + answer.strip(), self._url)
        return answer

    def _drop(self) -> None:
        """Gives up a connection whose other end may never answer, without waiting for it."""
        threading.Thread(target=self._connection.close, daemon=True).start()
        self._connection = None

    def _checked(self, message: bytes) -> dict[str, Any]:
        """The answer, or an error: a broken server must not move the robot."""
        answer = wire.unpack(message)
        actions = answer.get("actions") if isinstance(answer, dict) else None
        if (
            not isinstance(actions, np.ndarray)
            or actions.dtype.kind != "f"
            or actions.ndim not in (2, 3)
            or not np.isfinite(actions).all()
        ):
            raise errors.UserError("no finite actions in the answer", self._url, "do not act on it")
        wanted = self.metadata.get("action_spec", {})
        width = wanted.get("dim") if isinstance(wanted, dict) else None
        if width not in (None, actions.shape[-1]):
            what = f"{actions.shape[-1]} numbers an action instead of {width}"
            raise errors.UserError(what, self._url, "do not act on it")
        return dict(answer, actions=actions.astype(np.float32))
