"""Samples to pictures: GOPs side by side from an index, or a stream in order."""

from firsttouch.decode.frame import Frame, Plane, grey_factor
from firsttouch.decode.gop import GopDecoder, is_reference
from firsttouch.decode.stream import StreamDecoder, Streamed, decode_stream

__all__ = [
    "Frame",
    "GopDecoder",
    "Plane",
    "StreamDecoder",
    "Streamed",
    "decode_stream",
    "grey_factor",
    "is_reference",
]
