"""Maps from the graph's resolution to the picture's own, a few rows at a time, so that no large (N, H, W) exists."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Numbers held at a time: 8 MB of float32, which stay in a CPU's last cache.
_STRIP_NUMBERS = 2**21

Floats = NDArray[np.float32]


class Frame(NamedTuple):
    """Where a picture lies; each a (height, width) in pixels."""

    padded: tuple[int, int]  # of the graph's input
    size: tuple[int, int]  # of the picture at the top left of it
    output: tuple[int, int]  # at which the answers are wanted


def strips(maps: Floats, frame: Frame) -> Iterator[tuple[slice, Floats]]:
    """Coarse maps (N, h, w) at the output's size: rows, and the maps' (N, len(rows), width) there, to keep.

    Upsampling to the padded size, cropping and resizing to the output, all bilinear, are linear and separable: together
    they are one matrix along the rows and one along the columns, and a strip of output rows needs a band of input rows
    only.
    """
    height, width = frame.output
    down = _resize_matrix(maps.shape[1], frame.padded[0], frame.size[0], height)
    across = _resize_matrix(maps.shape[2], frame.padded[1], frame.size[1], width).T
    for rows in _slices(len(maps), frame.output):
        used = np.flatnonzero(down[rows].any(0))
        band = slice(used[0], used[-1] + 1)
        yield rows, down[rows, band] @ (maps[:, band] @ across)


def fine_strips(maps: Floats, frame: Frame) -> Iterator[tuple[slice, Floats]]:
    """The same for maps (N, H, W) at the padded size, of whose matrices nearly all would be zeros."""
    down, across = (_Taps.of(*edges) for edges in zip(frame.size, frame.output, strict=True))
    for rows in _slices(len(maps), frame.output):
        tall = _mixed(maps[:, down.low[rows]], maps[:, down.high[rows]], down.share[rows, None])
        yield rows, _mixed(tall.take(across.low, 2), tall.take(across.high, 2), across.share)


def probability_strips(mask_logits: Floats, frame: Frame) -> Iterator[tuple[slice, Floats]]:
    """The `strips` of logits, each through the sigmoid."""
    for rows, logits in strips(mask_logits, frame):
        yield rows, sigmoid(logits)


def sigmoid(logits: Floats) -> Floats:
    """In place. Exact to float32's last digits for small results too, which decide whose a pixel of background is."""
    np.maximum(logits, -87, out=logits)  # exp(88.8) overflows
    np.exp(np.negative(logits, out=logits), out=logits)
    logits += 1
    return np.reciprocal(logits, out=logits)


def nearest(map_: NDArray[Any], frame: Frame) -> NDArray[Any]:
    """A map (H, W) of ids at the padded size, looked up under each pixel centre of the output."""
    rows, columns = (
        ((np.arange(output) + 0.5) * (size / output)).astype(np.int64)
        for size, output in zip(frame.size, frame.output, strict=True)
    )
    return map_[rows][:, columns]


def _resize_matrix(source: int, padded: int, size: int, output: int) -> Floats:
    """(output, source) weights of: bilinear to `padded`, the first `size` of it, bilinear to `output`."""
    return _bilinear(_bilinear(np.eye(source, dtype=np.float32), padded)[:size], output)


class _Taps(NamedTuple):
    """Every pixel of a resized line as a mixture of two of the line; pixel centres lie at half numbers."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    share: Floats  # of `high`, in [0, 1)

    @classmethod
    def of(cls, size: int, output: int) -> _Taps:
        """From `size` pixels to `output`."""
        scale = float(np.float32(size / output))  # in torch, the scale and the place are float32 as well
        place = np.maximum((np.arange(output) + 0.5) * scale - 0.5, 0).astype(np.float32)
        low = place.astype(np.int64)
        return cls(low, np.minimum(low + 1, size - 1), (place - low).astype(np.float32))


def _mixed(low: Floats, high: Floats, share: Floats) -> Floats:
    """In place of both."""
    high -= low
    high *= share
    low += high
    return low


def _bilinear(rows: Floats, count: int) -> Floats:
    """(S, N) as (count, N)."""
    taps = _Taps.of(len(rows), count)
    return _mixed(rows[taps.low], rows[taps.high], taps.share[:, None])


def _slices(num_maps: int, output: tuple[int, int]) -> Iterator[slice]:
    """The output's rows, so many at a time as may be held of all maps."""
    step = max(1, _STRIP_NUMBERS // max(1, num_maps * output[1]))
    return (slice(start, min(start + step, output[0])) for start in range(0, output[0], step))
