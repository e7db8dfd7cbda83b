"""Bytes as they arrive -> frames in display order: one chain of decoding that a worker advances piece by piece."""

from __future__ import annotations

import io
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

import numpy as np

from .clock import Deadline
from .decode import Frame, GopDecoder, StreamDecoder, Streamed
from .detect import Surfaces
from .errors import DeadlineExceeded
from .index import Index
from .plan import Rates, Step, decode_stop
from .sparse import SparseBytes

QUANTUM_ROWS = 8
"""Samples decoded before a thread looks up again: about 30 ms at 720p."""

FRAMES_AHEAD = 12
"""Frames a stream decodes before anyone takes them: 1.4 MB each at 720p."""


class GopChain:
    """The samples of a step of the plan, from a key frame on. `move_end` moves its end while it runs.

    `key_at_once`: give the key frame when it has come. A decoder of reordered frames keeps it back until others have
    followed, so it is decoded twice, which costs 23 ms at 720p.
    """

    def __init__(
        self,
        index: Index,
        sparse: SparseBytes,
        step: Step,
        rates: Rates,
        *,
        skip_disposable: bool,
        device: str = "cpu",
        surfaces: Surfaces | None = None,
        key_at_once: bool = False,
    ) -> None:
        self._index, self._sparse, self._rates = index, sparse, rates
        self._skip, self._device, self._surfaces = skip_disposable, device, surfaces
        # Not by a chip's decoder, which takes longer to open, nor where an earlier frame is to be looked at first.
        first = index.frame_number[step.first_row] in step.look_at[:1]
        self._key_at_once = key_at_once and first and device == "cpu" and index.reorder_depth > 0
        self._decoder: GopDecoder | None = None
        self._next = step.first_row
        self._end = step.end_row
        self._finished = False
        self.rows = range(step.first_row, step.stop_row)
        self._stop = decode_stop(index, step.stop_row)

    @property
    def next_row(self) -> int:
        """The first sample that the decoder has not been given."""
        return self._next

    @property
    def given(self) -> tuple[int, int]:
        """Key frames, and other samples, that the decoder has been given: some of their frames are still in it."""
        rows = self._next - self.rows.start
        skipped = int(np.count_nonzero(self._index.is_disposable[self.rows.start : self._next])) if self._skip else 0
        return min(rows, 1), max(rows - skipped - 1, 0)

    @property
    def finished(self) -> bool:
        return self._finished

    @property
    def hardware(self) -> bool:
        return self._decoder is not None and self._decoder.hardware

    @property
    def seconds_left(self) -> float:
        return 0.0 if self._finished else (self._stop - self._next) * self._rates.decode_reference_seconds

    def move_end(self, stop_row: int) -> None:
        """End at `stop_row` instead: not before what the decoder has got already, not behind the GOP."""
        if not self._finished:
            self.rows = range(self.rows.start, min(self._end, max(stop_row, self._next)))
            self._stop = max(decode_stop(self._index, self.rows.stop), self._next)

    def ready(self) -> bool:
        if self._finished:
            return False
        return self._next >= self._stop or self._sparse.has(self._index.byte_range(self._next))

    def advance(self) -> Iterator[Frame]:
        """Feed up to `QUANTUM_ROWS` samples that are here; at the end, flush the decoder."""
        if self._decoder is None:
            rows = range(self.rows.start, decode_stop(self._index, self._end))
            self._decoder = GopDecoder(
                self._index,
                self._sparse.read,
                rows,
                skip_nonref=self._skip,
                device=self._device,
                keep_on_device=self._keeps(),
            )
            if self._key_at_once:
                yield from GopDecoder(self._index, self._sparse.read, rows[:1]).frames()
                return  # whoever is free looks at it, before anything else is decoded
        until = self._next
        while until < min(self._next + QUANTUM_ROWS, self._stop) and self._sparse.has(self._index.byte_range(until)):
            until += 1
        yield from self._new(self._decoder.frames(until))
        self._next = until
        if self._next >= self._stop:
            self._decoder.cut(self._stop)
            yield from self._new(self._decoder.frames())
            self._finished = True

    def _keeps(self) -> bool:
        """Whether pictures of this clip can be worked on where NVDEC leaves them."""
        if self._device != "cuda" or self._surfaces is None or self._index.rotation:
            return False
        return self._surfaces.takes(self._index.width, self._index.height)

    def _new(self, frames: Iterator[Frame]) -> Iterator[Frame]:
        """Without the key frame where it was given at once."""
        return (frame for frame in frames if not (self._key_at_once and frame.row == self.rows.start))

    def close(self) -> None:
        self._finished = True
        if self._decoder is not None:
            self._decoder.close()


class AskingBytes:
    """The sparse bytes as a file that says where it is read before the bytes are there: how `direct` fetches."""

    def __init__(self, sparse: SparseBytes, ask: Callable[[int], None]) -> None:
        self._sparse, self._ask = sparse, ask

    @property
    def size(self) -> int | None:
        return self._sparse.size

    def file(self, deadline: Deadline | None = None) -> BinaryIO:
        return cast(BinaryIO, _AskingFile(self._sparse, self._sparse.file(deadline), self._ask))


class _AskingFile(io.RawIOBase):
    def __init__(self, sparse: SparseBytes, file: BinaryIO, ask: Callable[[int], None]) -> None:
        super().__init__()
        self._sparse, self._file, self._ask = sparse, file, ask

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        position = self._file.tell()
        if size and position < (self._sparse.size or 0):
            self._ask(position)
        return self._file.read(size)


class StreamChain:
    """A file without an index, decoded in order by a thread of its own, which may have to wait for bytes."""

    rows = range(0, 1)
    next_row = 0
    hardware = False
    given = 0, 0  # a thread of its own decodes, and its time is not counted

    def __init__(self, streamed: Streamed, deadline: Deadline, on_frame: Callable[[], None]) -> None:
        self._streamed, self._deadline, self._on_frame = streamed, deadline, on_frame
        self._frames: deque[Frame] = deque()
        self._room = threading.Condition()
        self._ended = self._closed = False
        self._error: Exception | None = None
        self.cut_short = False
        """The deadline came before the end of the stream."""
        self.decoder: StreamDecoder | None = None
        self._thread = threading.Thread(target=self._pump, name="firsttouch-stream", daemon=True)
        self._thread.start()

    @property
    def finished(self) -> bool:
        with self._room:
            return self._ended and not self._frames

    @property
    def seconds_left(self) -> float:
        return 0.0

    def move_end(self, stop_row: int) -> None:
        """A stream has no rows."""

    def ready(self) -> bool:
        with self._room:
            return bool(self._frames) or self._ended

    def advance(self) -> Iterator[Frame]:
        while True:
            with self._room:
                if not self._frames:
                    break
                frame = self._frames.popleft()
                self._room.notify()
            yield frame
        if self._ended and self._error is not None:
            raise self._error

    def close(self) -> None:
        """The thread ends with the frame it decodes now; whoever feeds the file must fail it to end a waiting read."""
        with self._room:
            self._closed = True
            self._frames.clear()
            self._room.notify()

    def join(self) -> None:
        self._thread.join()

    def _pump(self) -> None:
        try:
            self.decoder = StreamDecoder(self._streamed, self._deadline)
            for frame in self.decoder.frames():
                with self._room:
                    self._room.wait_for(lambda: self._closed or len(self._frames) < FRAMES_AHEAD)
                    if self._closed:
                        return
                    self._frames.append(frame)
                self._on_frame()
        except DeadlineExceeded:
            self.cut_short = True
        except Exception as error:
            # Kept for the worker that takes the frames: an error must not end in a thread nobody waits for.
            self._error = error
        finally:
            if self.decoder is not None:
                self.decoder.close()
            with self._room:
                self._ended = True
            self._on_frame()
