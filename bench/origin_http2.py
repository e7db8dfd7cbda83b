"""The origin's HTTP/2 side, through the h2 library: many answers on one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

if TYPE_CHECKING:
    from bench.origin import _Server


async def serve_http2(server: _Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection until it ends; a reset stream stops its answer and nothing else."""
    conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    conn.initiate_connection()
    writer.write(conn.data_to_send())
    answers: dict[int, asyncio.Task[None]] = {}
    room = asyncio.Event()
    try:
        while data := await reader.read(65536):
            for event in conn.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    headers = {str(name): str(value) for name, value in event.headers}
                    wire = _Http2Wire(conn, writer, event.stream_id, room)
                    answers[event.stream_id] = asyncio.create_task(_answer(server, headers, wire))
                elif isinstance(event, h2.events.StreamReset):
                    if (task := answers.pop(event.stream_id, None)) is not None and not task.done():
                        server.counts.aborted += 1
                        task.cancel()
                elif isinstance(event, (h2.events.WindowUpdated, h2.events.RemoteSettingsChanged)):
                    room.set()
                elif isinstance(event, h2.events.ConnectionTerminated):
                    return
            writer.write(conn.data_to_send())
            await writer.drain()
    finally:
        for task in answers.values():
            task.cancel()
        await asyncio.gather(*answers.values(), return_exceptions=True)


async def _answer(server: _Server, headers: Mapping[str, str], wire: _Http2Wire) -> None:
    await server.answer(headers[":method"], headers[":path"], headers, wire)


class _Http2Wire:
    """One answer on one stream."""

    def __init__(
        self,
        conn: h2.connection.H2Connection,
        writer: asyncio.StreamWriter,
        stream_id: int,
        room: asyncio.Event,
    ) -> None:
        self._conn = conn
        self._writer = writer
        self._id = stream_id
        self._room = room

    async def head(self, status: int, headers: Mapping[str, str]) -> None:
        named = [(name, value) for name, value in headers.items() if value and name != "transfer-encoding"]
        self._conn.send_headers(self._id, [(":status", str(status)), *named])
        await self._flush()

    async def body(self, data: memoryview) -> None:
        at = 0
        while at < len(data):
            room = min(self._conn.local_flow_control_window(self._id), self._conn.max_outbound_frame_size)
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            piece = data[at : at + room]
            self._conn.send_data(self._id, bytes(piece))
            at += len(piece)
        await self._flush()

    async def end(self) -> None:
        self._conn.end_stream(self._id)
        await self._flush()

    def cut(self) -> None:
        self._conn.reset_stream(self._id, error_code=2)
        self._writer.write(self._conn.data_to_send())

    async def _flush(self) -> None:
        if self._writer.is_closing():
            raise ConnectionResetError
        self._writer.write(self._conn.data_to_send())
        await self._writer.drain()
