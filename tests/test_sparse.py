"""Sparse bytes against a plain model, and what waits for them."""

from __future__ import annotations

import io
import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsttouch.clock import Deadline
from firsttouch.errors import DeadlineExceeded, SourceCutOff
from firsttouch.ranges import ByteRange
from firsttouch.sparse import SparseBytes

SIZE = 64
SOON = 5.0


def written(offset: int, data: bytes) -> SparseBytes:
    sparse = SparseBytes(SIZE)
    sparse.write(offset, data)
    return sparse


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 20)), max_size=12), st.booleans())
def test_any_order_of_writes_is_what_a_set_of_bytes_says(writes: list[tuple[int, int]], grows: bool) -> None:
    sparse = SparseBytes(None if grows else SIZE)
    model: dict[int, int] = {}
    for start, length in writes:
        data = bytes((start + i) % 251 + 1 for i in range(min(length, SIZE - start)))
        sparse.write(start, data)
        model.update(enumerate(data, start))
    there = sorted(model)
    assert [i for part in sparse.have() for i in range(part.start, part.stop)] == there
    for start in range(0, SIZE, 7):
        for stop in range(start + 1, SIZE + 1, 5):
            wanted = ByteRange(start, stop)
            lacking = [i for i in range(start, stop) if i not in model]
            assert [i for part in sparse.missing(wanted) for i in range(part.start, part.stop)] == lacking
            assert sparse.has(wanted) is (not lacking)
            if not lacking:
                assert sparse.read(wanted) == bytes(model[i] for i in range(start, stop))


def test_reading_what_is_not_there_says_so() -> None:
    with pytest.raises(LookupError, match=r"0\.\.10"):
        written(5, b"hello").read(ByteRange(0, 10))


def test_reading_after_a_failure_raises_its_error_and_what_came_stays() -> None:
    sparse = written(0, b"head")
    sparse.fail(SourceCutOff("gone", hint="try later"))
    assert sparse.read(ByteRange(0, 4)) == b"head"
    with pytest.raises(SourceCutOff, match="gone") as caught:
        sparse.read(ByteRange(0, 5))
    assert caught.value.hint == "try later"


def test_a_write_outside_the_file_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        SparseBytes(10).write(8, b"abc")


def test_complete_once_every_byte_is_there() -> None:
    sparse = SparseBytes(6)
    sparse.write(3, b"def")
    assert not sparse.complete
    sparse.write(0, b"abc")
    assert sparse.complete
    assert sparse.closed
    assert sparse.have() == [ByteRange(0, 6)]


def test_an_empty_file_is_complete() -> None:
    assert SparseBytes(0).complete
    assert SparseBytes(0).file().read() == b""


def test_a_stream_grows_until_it_is_finished() -> None:
    sparse = SparseBytes(None)
    sparse.write(0, b"abc")
    assert sparse.size is None
    assert not sparse.complete
    sparse.finish(3)
    assert sparse.size == 3
    assert sparse.complete


def test_finishing_before_what_was_written_is_refused() -> None:
    sparse = SparseBytes(None)
    sparse.write(0, b"abc")
    with pytest.raises(ValueError, match="byte 2"):
        sparse.finish(2)


def test_a_waiting_thread_is_woken_by_the_last_missing_byte() -> None:
    sparse = written(0, b"abc")
    seen: list[bool] = []
    waiter = threading.Thread(target=lambda: seen.append(sparse.wait(ByteRange(0, 5), Deadline.after(SOON))))
    waiter.start()
    sparse.write(4, b"e")
    sparse.write(3, b"d")
    waiter.join(SOON)
    assert seen == [True]


def test_a_waiting_thread_is_woken_by_a_failure() -> None:
    sparse = SparseBytes(SIZE)
    seen: list[bool] = []
    waiter = threading.Thread(target=lambda: seen.append(sparse.wait(ByteRange(0, 5), Deadline.after(SOON))))
    waiter.start()
    sparse.fail(SourceCutOff("gone"))
    waiter.join(SOON)
    assert seen == [False]


def test_waiting_ends_at_the_deadline() -> None:
    passed = Deadline(moment=10.0, clock=lambda: 10.0)
    assert not SparseBytes(SIZE).wait(ByteRange(0, 1), passed)
    assert written(0, b"a").wait(ByteRange(0, 1), passed)


def test_waiting_for_bytes_beyond_the_end_of_a_stream_ends() -> None:
    sparse = SparseBytes(None)
    sparse.finish(3)
    assert not sparse.wait(ByteRange(0, 5), Deadline.after(SOON))


def test_listeners_hear_of_every_change_until_they_leave() -> None:
    sparse = SparseBytes(SIZE)
    heard: list[int] = []
    leave = sparse.subscribe(lambda: heard.append(sparse.version))
    sparse.write(0, b"a")
    sparse.write(1, b"b")
    sparse.fail(SourceCutOff("gone"))
    leave()
    sparse.write(2, b"c")
    assert heard == [1, 2, 2]
    assert sparse.version == 3


def test_the_file_reads_zeros_where_bytes_are_missing() -> None:
    sparse = written(2, b"ab")
    with sparse.file() as file:
        assert file.read(6) == b"\0\0ab\0\0"
        assert file.seek(-2, io.SEEK_END) == SIZE - 2
        assert file.read() == b"\0\0"
        assert file.read(1) == b""
        assert file.seek(2) == 2
        assert file.tell() == 2
        buffer = bytearray(3)
        assert file.readinto(buffer) == 3  # type: ignore[attr-defined]
        assert bytes(buffer) == b"ab\0"
        with pytest.raises(ValueError, match="-1"):
            file.seek(-1)


def test_the_end_of_a_stream_of_unknown_length_cannot_be_sought() -> None:
    sparse = SparseBytes(None)
    sparse.write(0, b"abc")
    with pytest.raises(io.UnsupportedOperation):
        sparse.file().seek(0, io.SEEK_END)


def test_a_waiting_file_gives_a_thread_all_bytes_in_order() -> None:
    data = random.Random(1).randbytes(5000)
    sparse = SparseBytes(None)
    got: list[bytes] = []

    def read() -> None:
        file = sparse.file(Deadline.after(SOON))
        while piece := file.read(700):
            got.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    for start in range(0, len(data), 333):
        sparse.write(start, data[start : start + 333])
    sparse.finish(len(data))
    reader.join(SOON)
    assert b"".join(got) == data


def test_a_waiting_file_raises_what_stopped_the_stream_not_an_early_end() -> None:
    sparse = SparseBytes(None)
    sparse.write(0, b"abc")
    sparse.fail(SourceCutOff("gone"))
    file = sparse.file(Deadline.after(SOON))
    assert file.read(10) == b"abc"
    with pytest.raises(SourceCutOff, match="gone"):
        file.read(1)


def test_a_waiting_file_raises_at_the_deadline() -> None:
    file = SparseBytes(SIZE).file(Deadline(moment=1.0, clock=lambda: 1.0))
    with pytest.raises(DeadlineExceeded):
        file.read(1)


def test_a_large_file_costs_only_the_pages_that_came() -> None:
    with open("/proc/self/statm") as statm:
        before = int(statm.read().split()[1])
        sparse = SparseBytes(1 << 30)
        sparse.write(1 << 29, b"x" * 100_000)
        statm.seek(0)
        assert (int(statm.read().split()[1]) - before) * 4096 < 20_000_000
    assert sparse.read(ByteRange(1 << 29, (1 << 29) + 1)) == b"x"
