"""Connections of which each keeps little memory, whatever its other end does.

websockets bounds the handshake's time, the headers and the messages. Left to us: how many
connections are open that are no robots yet, or no more; how much may wait to be read by the other
end, since pings are answered without looking at it; and how many messages wait for us, since 256 kB
read at once may be 26,000 of them, 9 MB as objects.
"""

import asyncio
from typing import Any

from websockets.asyncio import server as websocket

MAX_UNREAD_BYTES = 1 << 20  # that wait for the other end
_PIECE_BYTES = 1 << 12  # to parse before looking whether messages wait


class Lobby:
    """Connections that are no robots: in their handshake, asking for a page, or being closed.

    Where too many are in it, the oldest is ended: robots pass in milliseconds.

    Args:
        places: most connections in it.
    """

    def __init__(self, places: int):
        self._places = places
        self._inside: dict[websocket.ServerConnection, None] = {}

    def enter(self, connection: websocket.ServerConnection) -> None:
        """Takes a connection in."""
        self._inside[connection] = None
        if len(self._inside) > self._places:
            oldest = next(iter(self._inside))
            self.leave(oldest)
            oldest.transport.abort()

    def leave(self, connection: websocket.ServerConnection) -> None:
        """Lets a connection out: it is a robot now, or closed."""
        self._inside.pop(connection, None)


class Connection(websocket.ServerConnection):
    """One that starts in a lobby, is parsed as needed, and ends where its other end reads not."""

    def __init__(self, lobby: Lobby, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._lobby, self._unparsed = lobby, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Is called by asyncio."""
        super().connection_made(transport)
        self._lobby.enter(self)
        self.recv_messages.resume = self._resume

    def connection_lost(self, exc: Exception | None) -> None:
        """Is called by asyncio."""
        self._lobby.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Is called by asyncio; the answers to pings are written here."""
        data, done = self._unparsed + data, 0
        while done < len(data) and self.transport.is_reading():  # not while messages wait
            super().data_received(data[done : done + _PIECE_BYTES])
            done += _PIECE_BYTES
        self._unparsed = data[done:]
        if self.transport.get_write_buffer_size() > MAX_UNREAD_BYTES:
            self.transport.abort()

    def _resume(self) -> None:
        self.transport.resume_reading()
        self.loop.call_soon(self.data_received, b"")  # what was left while messages waited
