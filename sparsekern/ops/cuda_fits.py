"""Which sizes the CUDA kernels take at all: those whose tile lies in shared memory and whose grid a card can launch.

What does not fit goes to torch. The launchers (csrc/cuda/conv_plan.h, grouped_conv2d*.cu, sparse_linear*.cu) decide for themselves
and refuse; this says the same beforehand, from the least memory that each of them could do with, so never "fits" of what they refuse.
"""

from __future__ import annotations

import math

GRID = 65535  # blocks along y or z
_LIMITS = 65535, 16383, 4095, 1023, 255  # halo pixels of a tile, as the launchers try them
_LOG2_PIXELS = 7  # of a tile


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _taps(kernel: int, stride: int, pad: int, dilation: int, backwards: bool) -> tuple[int, int]:
    """The most taps of a target pixel along one axis, and the longest way from its first to its last source pixel."""
    if not backwards:
        return kernel, (kernel - 1) * dilation
    common, most, longest = math.gcd(stride, dilation), 0, 0
    step = stride // common
    for phase in range(stride):
        first = next((k for k in range(min(step, kernel)) if (phase + pad - k * dilation) % stride == 0), None)
        if first is not None:
            count = (kernel - 1 - first) // step + 1
            most, longest = max(most, count), max(longest, (count - 1) * (dilation // common))
    return most, longest


def _tile(images: int, rows: int, columns: int, spans: tuple, steps: tuple, limit: int) -> int | None:
    """Halo pixels of the tile that the launchers choose, at most ``limit``; None: there is none. As choose_tile."""
    best, chosen = -1.0, None
    for w in range(_LOG2_PIXELS + 1):
        for h in range(_LOG2_PIXELS + 1 - w):
            n = _LOG2_PIXELS - w - h
            if (h and 1 << (h - 1) >= rows) or (w and 1 << (w - 1) >= columns):
                continue
            high, wide = ((1 << h) - 1) * steps[0] + spans[0] + 1, ((1 << w) - 1) * steps[1] + spans[1] + 1
            pixels = high * wide << n
            tiles = _up(images, 1 << n) * _up(rows, 1 << h) * _up(columns, 1 << w)
            if pixels > limit or tiles >= 2**31:
                continue
            cost = tiles * (pixels + (1 << _LOG2_PIXELS)) * (1.5 if w < 2 else 1.0)
            if best < 0 or cost < best:
                best, chosen = cost, pixels
    return chosen


def _halos(images: int, rows: int, columns: int, spans: tuple, steps: tuple) -> set[int]:
    """Halo pixels of the tiles that the launchers try."""
    found = (_tile(images, rows, columns, spans, steps, limit) for limit in _LIMITS)
    return {pixels for pixels in found if pixels is not None}


def convolution(product: str, x: tuple, weight: tuple, window: tuple, out: tuple, itemsize: int, shared_bytes: int) -> bool:
    """``product`` of ``x [N, C, H, W]``, ``weight [K, C/G, KH, KW]`` and an ``out [OH, OW]``, in blocks of ``shared_bytes``."""
    (n, c, h, w), (k, in_group, kernel_h, kernel_w) = x, weight
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups = window
    backwards = product == "grad_x"
    if max(*x, *weight, *window) > 2**29 or (backwards and stride_h * stride_w > GRID):
        return False
    taps_y, span_y = _taps(kernel_h, stride_h, pad_h, dilation_h, backwards)
    taps_x, span_x = _taps(kernel_w, stride_w, pad_w, dilation_w, backwards)
    rows, columns = (_up(h, stride_h), _up(w, stride_w)) if backwards else out
    steps, taps = (1, 1) if backwards else (stride_h, stride_w), taps_y * taps_x
    halos = _halos(n, rows, columns, (span_y, span_x), steps)
    if product == "grad_weight":
        least = _grad_weight_pixel(k, k // groups, in_group, taps, itemsize, shared_bytes, halos)
        return least or 0 in (k, c)
    if _up(c if backwards else k, 16) > GRID:
        return False
    pairs = 2 * _up(taps, 2)  # steps of two sets of 8 targets, a piece of channels at a time, weights loaded as they are needed
    return any(halo * 16 + _up(pairs * 8, 16) * 16 + pairs * 256 <= shared_bytes for halo in halos)


def _grad_weight_pixel(k: int, out_group: int, in_group: int, taps: int, itemsize: int, shared_bytes: int, halos: set[int]) -> bool:
    """Whether some plan of the weight's gradient fits: as weight_plan, with the most pieces that a portion can need."""

    def spread(pieces: int) -> int:  # bytes of a pixel
        half = (pieces + 1) // 2
        return ((pieces | 1) if itemsize == 2 else half * 2 if half % 2 else half * 2 + 2) * 16

    def pieces(first: int, end: int) -> int:
        return (((min(end, k) - 1) // out_group + 1) * in_group - 1) // 8 + 1 - first // out_group * in_group // 8

    if k == 0 or in_group == 0:
        return True
    widest = max(pieces(first, first + 8) for first in range(0, k, 8))
    for sets in (4, 1):
        width = widest if sets == 1 else max(pieces(first, first + 32) for first in range(0, k, 32))
        for sums in (12, 6, 3, 1):
            staged = width if sets == 4 else min(width, (8 * sums - 1) // taps + 2)
            portions = _up(sets * _up(taps * widest, 2), 4 * sums)
            least = 128 * spread(sets * itemsize // 2)
            if _up(k, 8 * sets) * portions <= GRID and any(halo * spread(staged * itemsize // 2) + least <= shared_bytes for halo in halos):
                return True
    return False


def inputs_of_panels(in_features: int, fan_in: int, shared_bytes: int) -> int:
    """Neighbouring inputs that a block of grad_x of panels makes: as inputs_of_block (csrc/cuda/sparse_linear_panels_input.cu)."""
    room = (shared_bytes - 3 * 2 * 9216 - 128 * 8 - 1024) // (72 * 4)
    return max(1, min(max(64, min(384, 48 * in_features // max(1, fan_in) // 16 * 16)), room, in_features))


def linear(product: str, rows: int, in_features: int, index: tuple, block: tuple) -> bool:
    """``product`` of ``rows`` rows and a weight of ``index [OB, F]`` blocks."""
    (out_blocks, fan_in), (block_out, block_in) = index, block
    if max(in_features, out_blocks * block_out) > (2**31 - 1) // 64 or out_blocks * fan_in >= 2**31:
        return False
    if tuple(block) == (1, 1):
        return True
    if block_in == 1 and block_out >= 16 and rows >= 32:  # panels: tiles of 64
        if product == "grad_x":
            return _up(in_features, inputs_of_panels(in_features, fan_in, 99 << 10)) <= GRID  # of the card with the fewest shared bytes
        tiles = out_blocks * _up(block_out, 64)
        return tiles <= GRID if product == "forward" else tiles * _up(fan_in, 64) < 2**31
    if product == "grad_weight":  # tiles of a block are 32 outputs by 64 inputs
        return out_blocks * fan_in * _up(block_out, 32) * _up(block_in, 64) < 2**31
    targets, blocks = (block_in, in_features // block_in) if product == "grad_x" else (block_out, out_blocks)
    return blocks * _up(targets, 16 if targets <= 16 else 64) <= GRID


def sparse_convolution(
    product: str, x: tuple, filters: int, block: tuple, window: tuple, out: tuple, itemsize: int, shared_bytes: int
) -> bool:
    """``product`` of ``x [N, C, H, W]`` and blocks ``(BO, BI, BT)`` of kept weights; ``window``: kernel, stride, padding, dilation."""
    (n, c, h, w), (kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w) = x, window
    backwards, taps = product == "grad_x", kernel_h * kernel_w // block[2]
    if max(*x, filters, *window, *out, c // block[1] * taps) > 2**29 or (backwards and stride_h * stride_w > GRID):
        return False
    _, span_y = _taps(kernel_h, stride_h, pad_h, dilation_h, backwards)
    _, span_x = _taps(kernel_w, stride_w, pad_w, dilation_w, backwards)
    rows, columns = (_up(h, stride_h), _up(w, stride_w)) if backwards else out
    steps = (1, 1) if backwards else (stride_h, stride_w)
    halos = _halos(n, rows, columns, (span_y, span_x), steps)
    targets, width, sources, deep = (c, block[1], filters, block[0]) if backwards else (filters, block[0], c, block[1])
    if product == "grad_weight":
        return any((halo | 1) * 4 + 8 * 32 * 16 + 32 <= shared_bytes for halo in halos)
    if width >= 8:
        tile = 16 if width <= 16 else 64
        pixel = 16 if sources * itemsize <= 16 else 48
        step = 32 // itemsize * 12 + tile * 32
        return targets // width * _up(width, tile) <= GRID and any(halo * pixel + step + 32 <= shared_bytes for halo in halos)
    if deep >= 8:  # scattered: stage, sums of 64 targets, who keeps each of 32 cells, the weights of one
        pixel, other = 16 if sources * itemsize <= 16 else 48, 64 * 129 * 4 + 32 * (4 + 64 * 12) + 64 + 2048
        return _up(targets, 64) <= GRID and any(halo * pixel + other <= shared_bytes for halo in halos)
    chunk = max(1, 32 // width) * width
    other = _up(chunk * 129 * 4, 16) * 16 + 8 * 32 * 4 * (2 if width == 1 else 5)
    return _up(targets, chunk) <= GRID and any((halo | 1) * 4 + other + 32 <= shared_bytes for halo in halos)


def masked_weight(x: tuple, filters: int, block: tuple, nnz: int, window: tuple, out: tuple, itemsize: int, shared_bytes: int) -> bool:
    """Whether the weight's gradient of blocks that are 8 wide can be made on tensor cores; else it goes by lists. As patch_plan."""
    (n, c, _, _), (block_out, block_in, block_taps), taps = x, block, window[0] * window[1]
    spans = (window[0] - 1) * window[6], (window[1] - 1) * window[7]
    steps = 8 // itemsize  # of a patch: 16 lines each
    other = 4 * (32 * (128 * itemsize + 16) + (32 + 16 * steps) * 16) + 128 * 8
    if block_in >= 8:
        pieces = _up(block_in, 8) + (block_in % 8 > 0 and c > block_in)
        chunks = _up(pieces, 2 * steps)
        staged = _up(_up(pieces, chunks), 2) * itemsize  # pieces of 16 bytes, of a pixel
        pixel = staged | 1 if itemsize == 2 else staged + 2 * (staged // 2 % 2 == 0)
        groups, lists, slots = c // block_in, c // block_in * taps, nnz * block_taps * block_out // 32
    else:
        pixel, chunks = 1, _up(block_out, 32)
        groups = lists = filters // block_out
        slots = nnz * block_taps * block_in // (16 * steps)
    if lists >= 2**31 or ((slots + lists) // 4 + groups) * chunks >= 2**31:
        return False
    return any(halo <= (shared_bytes - other) // (pixel * 16) for halo in _halos(n, out[0], out[1], spans, (window[2], window[3])))


def root_convolution(x: tuple, weight: tuple, outs: int, window: tuple, out: tuple, itemsize: int, shared_bytes: int) -> bool:
    """A convolution of ``x [N, C, H, W]`` and ``weight [K, C/G, KH, KW]`` with the 1x1 behind it, in one kernel: as choose_root."""
    (n, _, _, _), (k, in_group, kernel_h, kernel_w) = x, weight
    stride_h, stride_w, _, _, dilation_h, dilation_w, groups = window
    if max(*x, *weight, *window, *out, outs) > 2**29 or 0 in (k, in_group):
        return False
    per_piece, out_group, taps = 16 // itemsize, k // groups, kernel_h * kernel_w

    def pieces(first: int, end: int) -> int:
        last = min(end, k) - 1
        return ((last // out_group + 1) * in_group - 1) // per_piece + 1 - first // out_group * in_group // per_piece

    block = max(pieces(first, first + 64) for first in range(0, k, 64))
    widest = max(pieces(first, first + 8) for first in range(0, k, 8))
    spans = (kernel_h - 1) * dilation_h, (kernel_w - 1) * dilation_w
    halos = _halos(n, out[0], out[1], spans, (stride_h, stride_w))
    steps = 8 * (_up(taps * widest, 2) + 1)
    other = (_up(k, per_piece) | 1) * 16 * 128 + 64 * 9 * 16 + 64 + _up(steps * 8, 16) * 16 + steps * 256 + 16
    return any(halo * (block | 1) * 16 + other <= shared_bytes for halo in halos)
