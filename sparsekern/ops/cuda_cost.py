"""What a product costs on a GPU, ours and torch's: bytes, padded FLOPs and launches over what the card can do.

A closed model, so that the choice depends on sizes alone. Its rates are data sheets and models, **not measurements of these kernels**:
``bench/gpu.py`` prints both estimates beside what it measures, so that a run on a card can put them right. Where the two estimates are
close torch's product is taken: a kernel that was never timed must not replace one that was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import torch

from sparsekern.ops import cuda_fits

#: Ours is taken only where torch's estimate is so many times longer.
MARGIN = 1.1


@dataclass(frozen=True)
class Card:
    """Rates per second of one kind of device."""

    copy: float  # bytes of memory, read and written
    cache: float  # bytes from the second-level cache
    half: float  # FLOPs of mma.sync on 16-bit numbers, as reached, not as promised
    tf32: float
    words: float  # 4-byte words from shared memory
    vendor_half: float  # FLOPs of torch's dense products
    vendor_tf32: float
    vendor_fp32: float
    node_us: float  # one more kernel
    shared_bytes: int = 227 << 10  # of a block, at the most
    processors: int = 108
    wgmma: float = 0.0  # as `half`; 0: the card has none


# wgmma reaches what the vendor's products reach, mma.sync 0.63 of it; words: 132 processors x 32 x 1.755 GHz
H100 = Card(3.0e12, 5.0e12, 440e12, 220e12, 7.4e12, 700e12, 350e12, 48e12, 1.5, processors=132, wgmma=700e12)
A100 = Card(1.4e12, 3.5e12, 200e12, 100e12, 4.9e12, 250e12, 125e12, 18e12, 2.0, 163 << 10)


@cache
def card_of(device: torch.device) -> Card:
    """The nearest known card; of a device that is no GPU (the emulator's) the H100."""
    if device.type != "cuda":
        return H100
    capability, facts = torch.cuda.get_device_capability(device), torch.cuda.get_device_properties(device)
    card = A100 if capability < (9, 0) else H100
    shared_bytes = getattr(facts, "shared_memory_per_block_optin", 99 << 10)  # the least there is
    wgmma = card.wgmma if capability[0] == 9 else 0.0  # in no later capability either
    return replace(card, shared_bytes=shared_bytes, processors=facts.multi_processor_count, wgmma=wgmma)


@dataclass(frozen=True)
class Estimate:
    """Microseconds of one call, what ours is bound by, whether there is a kernel for these sizes at all, the kind of call, and, where an op
    has several, the name of the kernel."""

    ours_us: float
    torch_us: float
    bound: str
    fits: bool = True
    key: tuple = ()
    way: str = ""  # which of our kernels, where there are several

    @property
    def ours(self) -> bool:
        return self.fits and self.ours_us * MARGIN < self.torch_us


def _slowest(card: Card, launches: int, seconds: dict[str, float]) -> tuple[float, str]:
    bound = max(seconds, key=lambda what: seconds[what])
    return seconds[bound] * 1e6 + launches * card.node_us, bound if seconds[bound] * 1e6 > launches * card.node_us else "the launch"


def _ours_rate(card: Card, dtype: torch.dtype, tf32: bool) -> float:
    if dtype != torch.float32:
        return card.half
    return card.tf32 if tf32 else card.tf32 / 3  # each number as a sum of two, three products


def _vendor_rate(card: Card, dtype: torch.dtype, tf32: bool) -> float:
    if dtype != torch.float32:
        return card.vendor_half
    return card.vendor_tf32 if tf32 else card.vendor_fp32


def _up(a: int, b: int) -> int:
    return -(-a // b)


def padded_macs(channels: int, group: int, source_group: int, taps: int, per_piece: int) -> int:
    """Multiply-adds per pixel that a convolution's matrix steps issue, for ``channels`` targets in groups of ``group``.

    A step multiplies two pieces of ``per_piece`` source channels, each under some tap, into 8 targets (csrc/cuda/conv_stage.cuh).
    """
    steps = 0
    for first in range(0, channels, 8):
        last = min(first + 8, channels) - 1
        begin, end = first // group * source_group // per_piece, _up((last // group + 1) * source_group, per_piece)
        steps += _up(taps * (end - begin), 2)
    return steps * 8 * 2 * per_piece


@lru_cache(maxsize=4096)
def convolution(
    product: str, x: tuple, weight: tuple, window: tuple, channels_last: bool, dtype: torch.dtype, tf32: bool, ends: int, card: Card
) -> Estimate:
    """``product`` of ``x [N, C, H, W]`` and ``weight [K, C/G, KH, KW]``; ``window`` as in the schema, ``ends``: bias and activation."""
    (n, c, h, w), (k, _, kernel_h, kernel_w) = x, weight
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups = window
    out_h = (h + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) // stride_h + 1
    out_w = (w + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) // stride_w + 1
    size, taps, in_group, out_group = dtype.itemsize, kernel_h * kernel_w, c // groups, k // groups
    moved = size * (n * c * h * w + n * k * out_h * out_w + math.prod(weight))
    flops = 2 * n * k * out_h * out_w * in_group * taps
    pixels, per_piece = n * out_h * out_w, 16 // size
    if product == "forward":
        macs = padded_macs(k, out_group, in_group, taps, per_piece)
    elif product == "grad_x":  # with a stride the pixels of each phase have taps of their own
        pixels, taps = n * h * w, _up(kernel_h, stride_h) * _up(kernel_w, stride_w)
        macs = padded_macs(c, in_group, out_group, taps, per_piece)
    else:
        macs = padded_macs(k, out_group, in_group, taps, 8)
    seconds = {
        "memory": moved / (0.8 * card.copy),
        "padded products": 2 * _up(pixels, 128) * 128 * macs / _ours_rate(card, dtype, tf32),
    }
    ours_us, bound = _slowest(card, 2 if product == "grad_weight" else 1, seconds)
    powers = in_group == out_group and in_group >= 4 and in_group & (in_group - 1) == 0
    if groups == 1:
        work = flops / (0.7 * _vendor_rate(card, dtype, tf32))
    elif dtype != torch.float32 and channels_last and powers and product == "forward":  # where cuDNN is known to be good
        work = flops * max(1, 64 / in_group) / (0.7 * card.vendor_half)
    else:  # its direct kernels for groups, on plain cores
        work = flops / (0.25 * card.vendor_fp32)
    torch_us, _ = _slowest(card, 1 + ends, {"memory": moved * (1 + ends) / (0.8 * card.copy), "products": work})
    fits = cuda_fits.convolution(product, x, weight, window, (out_h, out_w), size, card.shared_bytes)
    key = ("convolution", product, x, weight, window, channels_last, dtype, tf32, ends)
    return Estimate(ours_us, torch_us, bound, fits, key)


@lru_cache(maxsize=4096)
def root_convolution(
    x: tuple, weight: tuple, outs: int, window: tuple, channels_last: bool, dtype: torch.dtype, tf32: bool, card: Card
) -> Estimate:
    """A convolution of ``x [N, C, H, W]`` and ``weight [K, C/G, KH, KW]`` with the 1x1 to ``outs`` channels behind it, both with bias and
    activation: in one kernel, and as two calls by whoever is estimated faster."""
    (n, c, h, w), (k, in_group, kernel_h, kernel_w) = x, weight
    stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups = window
    out_h = (h + 2 * pad_h - dilation_h * (kernel_h - 1) - 1) // stride_h + 1
    out_w = (w + 2 * pad_w - dilation_w * (kernel_w - 1) - 1) // stride_w + 1
    between = (n, k, out_h, out_w)
    first = convolution("forward", x, weight, window, channels_last, dtype, tf32, 2, card)
    second = convolution("forward", between, (outs, k, 1, 1), (1, 1, 0, 0, 1, 1, 1), channels_last, dtype, tf32, 2, card)
    size, pixels, per_piece = dtype.itemsize, n * out_h * out_w, 16 // dtype.itemsize
    moved = size * (n * c * h * w + pixels * outs + math.prod(weight) + k * outs)
    macs = (
        padded_macs(k, k // groups, in_group, kernel_h * kernel_w, per_piece) + _up(outs, 64) * 64 * _up(k, 2 * per_piece) * 2 * per_piece
    )
    seconds = {
        "memory": moved / (0.8 * card.copy),
        # weights are brought for every tile of 128 pixels, the first ones number by number
        "cache": _up(pixels, 128) * size * (8 * math.prod(weight) + k * outs) / card.cache,
        "padded products": 2 * _up(pixels, 128) * 128 * macs / (0.6 * _ours_rate(card, dtype, tf32)),
    }
    ours_us, bound = _slowest(card, 1, seconds)
    torch_us = sum(min(e.ours_us, e.torch_us) if e.fits else e.torch_us for e in (first, second))
    fits = cuda_fits.root_convolution(x, weight, outs, window, (out_h, out_w), size, card.shared_bytes)
    return Estimate(ours_us, torch_us, bound, fits, ("root_convolution", x, weight, outs, window, channels_last, dtype, tf32))


def is_panels(product: str, rows: int, block: tuple[int, ...]) -> bool:
    """Whether outputs that share a list of single inputs are multiplied as such: as sparse_linear_panels (csrc/cuda/sparse_linear.h)."""
    return block[1] == 1 and block[0] >= 16 and rows >= 32


def tile_of_wide(across: int, lists: int, width: int, processors: int) -> tuple[int, int]:
    """A tile along the ``width`` targets of a list, and across them: as wide_tile (csrc/cuda/sparse_linear.h)."""
    if width % 128:
        return 64, 256
    return 128, 256 if _up(across, 256) * lists * (width // 128) >= processors else 128


def _by_wgmma(product: str, rows: int, in_features: int, index: tuple, block: tuple, size: int, moved: int, card: Card) -> dict[str, float]:
    """Seconds of a product of wide panels or blocks by wgmma; none where it does not take them. ``moved``: bytes of all operands."""
    (out_blocks, fan_in), (width, deep), panels = index, block, block[1] == 1
    if size != 2 or width % 64 or (deep % 64 and not panels) or not card.wgmma or (panels and product == "grad_x"):
        return {}
    if product == "forward":
        lists, targets, across, inner = out_blocks, width, rows, fan_in * deep
    elif product == "grad_x":  # the mean list
        lists, targets, across, inner = in_features // deep, deep, rows, _up(out_blocks * fan_in * deep, in_features) * width
    else:
        lists, targets, across, inner = out_blocks, width, fan_in * deep, rows
    along, height = tile_of_wide(across, lists, targets, card.processors)
    tiles_across, tiles_along = _up(across, height), targets // along
    rounds = _up(tiles_across * tiles_along * lists, card.processors)  # a processor has one tile at a time
    macs = rounds * card.processors * height * along * _up(inner, 64) * 64
    turned = rows * in_features if panels else 0  # x comes by row, as a rule
    return {
        "memory": (moved + 2 * size * turned) / (0.8 * card.copy),
        "cache": size * lists * inner * (tiles_along * across + tiles_across * targets) / card.cache,
        "padded products": 2 * macs / (0.6 * card.wgmma),
    }


@lru_cache(maxsize=4096)
def linear(product: str, rows: int, in_features: int, index: tuple, block: tuple, dtype: torch.dtype, tf32: bool, card: Card) -> Estimate:
    """``product`` of ``rows`` rows and a weight of ``index [OB, F]`` blocks. torch's makes the weight dense first, at every call."""
    (out_blocks, fan_in), (block_out, block_in), size = index, block, dtype.itemsize
    out_features, kept, way = out_blocks * block_out, out_blocks * fan_in * block_out * block_in, ""
    moved = size * (rows * (in_features + out_features) + kept) + 4 * out_blocks * fan_in
    if block == (1, 1):
        again = _up(rows, 4 if rows <= 8 else 32)  # how often the weight and its table are read
        words = rows * kept * (2 if product == "grad_weight" else 1)
        seconds = {
            "memory": moved / (0.8 * card.copy),
            "cache": again * kept * (size + (12 if product == "grad_x" else 4)) / card.cache,
            "shared memory": words / (0.7 * card.words),
        }
    elif is_panels(product, rows, block) and product == "grad_x":
        inputs = cuda_fits.inputs_of_panels(in_features, fan_in, card.shared_bytes)
        chunks, depth = _up(in_features, inputs), 128 // size
        lines = 64 * _up(_up(fan_in, chunks) + 8, 64)  # of a chunk and a panel, in tiles; a few more than the mean
        macs = _up(rows, 64) * 64 * chunks * out_blocks * lines * _up(block_out, depth) * depth
        seconds = {
            "memory": moved / (0.8 * card.copy),
            "cache": size * (chunks * rows * out_features + _up(rows, 64) * kept) / card.cache,
            "padded products": 2 * macs / (0.5 * _ours_rate(card, dtype, tf32)),
            "shared memory": 2 * rows * out_blocks * fan_in / (0.5 * card.words),
        }
    elif is_panels(product, rows, block):
        depth = 128 // size  # of a stage of the sum
        if product == "forward":
            read = _up(block_out, 64) * rows * out_blocks * fan_in + _up(rows, 64) * kept
            macs = _up(rows, 64) * 64 * out_blocks * _up(block_out, 64) * 64 * _up(fan_in, depth) * depth
        else:
            read = rows * (_up(block_out, 64) * out_blocks * fan_in + _up(fan_in, 64) * out_features)
            macs = _up(rows, depth) * depth * out_blocks * _up(block_out, 64) * 64 * _up(fan_in, 64) * 64
        turned = rows * (in_features + (out_features if product == "grad_weight" else 0))  # x comes by row, as a rule
        seconds = {
            "memory": (moved + 2 * size * turned) / (0.8 * card.copy),
            "cache": size * read / card.cache,
            "padded products": 2 * macs / (0.6 * _ours_rate(card, dtype, tf32)),
        }
    else:
        per_piece, height = 16 // size, 64 if rows <= 64 else 128
        target, source = (block_in, block_out) if product == "grad_x" else (block_out, block_in)
        width = 16 if target <= 16 else 64
        if product == "grad_weight":  # tiles of 64 inputs by 32 outputs of a block
            across, along = _up(block_in, 64), _up(block_out, 32)
            macs = _up(rows, 128) * 128 * out_blocks * fan_in * across * 64 * along * 32
            read = rows * out_blocks * fan_in * (along * block_in + across * block_out)
        else:
            steps = _up(source, per_piece) * per_piece * _up(target, width) * width
            macs = _up(rows, height) * height * out_blocks * fan_in * steps
            read = _up(target, width) * rows * out_blocks * fan_in * source + _up(rows, height) * kept
        seconds = {
            "memory": moved / (0.8 * card.copy),
            "cache": size * read / card.cache,
            "padded products": 2 * macs / _ours_rate(card, dtype, tf32),
        }
    if block[1] > 1 or is_panels(product, rows, block):
        other = _by_wgmma(product, rows, in_features, index, block, size, moved, card)
        if other and max(other.values()) < max(seconds.values()):
            seconds, way = other, "wgmma"
    ours_us, bound = _slowest(card, 3 if is_panels(product, rows, block) and product != "grad_x" else 1, seconds)
    dense = in_features * out_features
    making = (size * (2 * dense + 2 * kept) + 8 * kept) / (0.8 * card.copy)
    product_s = max(
        size * (dense + rows * (in_features + out_features)) / (0.8 * card.copy), 2 * rows * dense / _vendor_rate(card, dtype, tf32)
    )
    fits = cuda_fits.linear(product, rows, in_features, index, block)
    key = ("linear", product, rows, in_features, index, block, dtype, tf32)
    return Estimate(ours_us, (making + product_s) * 1e6 + 3 * card.node_us, bound, fits, key, way)


def _way_of(product: str, block: tuple[int, ...]) -> str:
    """How ``product`` of kept blocks ``(BO, BI, BT)`` is made: as sparse_conv2d_way (csrc/cuda/sparse_conv2d.h)."""
    target, source = block[:2] if product != "grad_x" else (block[1], block[0])
    if product == "grad_weight":
        return "scatter" if source >= 8 else "matrix" if target >= 8 else "list"
    return "matrix" if target >= 8 else "scatter" if source >= 8 else "list"


def _out(x: tuple, window: tuple) -> tuple[int, int]:
    """``[OH, OW]``."""
    kernel, stride, pad, dilation = window[0:2], window[2:4], window[4:6], window[6:8]
    height, width = ((x[i + 2] + 2 * pad[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    return height, width


@lru_cache(maxsize=4096)
def sparse_convolution(
    product: str, x: tuple, filters: int, block: tuple, nnz: int, window: tuple, dtype: torch.dtype, tf32: bool, card: Card
) -> Estimate:
    """``product`` of ``x [N, C, H, W]`` and ``nnz`` kept blocks ``(BO, BI, BT)``; ``window`` as in the schema. torch's makes the
    weight dense first, at every call."""
    (n, c, h, w), (kernel_h, kernel_w), (out_h, out_w) = x, window[:2], _out(x, window)
    size, kept, dense = dtype.itemsize, nnz * math.prod(block), filters * c * kernel_h * kernel_w
    images = size * (n * c * h * w + n * filters * out_h * out_w)
    out_pixels, pixels = n * out_h * out_w, n * (h * w if product == "grad_x" else out_h * out_w)
    way, rounded = _way_of(product, block), _up(pixels, 128) * 128
    if product == "grad_weight" and not cuda_fits.masked_weight(x, filters, block, nnz, window, (out_h, out_w), size, card.shared_bytes):
        way = "list"
    width, deep = (block[1], block[0]) if product == "grad_x" else block[:2]  # targets and sources of a block
    if product == "grad_weight" and way != "list":  # patches of 16 * steps lines by 32 columns, a warp each
        steps, by_items = 8 // size, way == "matrix"
        if by_items:
            patches, lines, columns = _up(kept // width, 16 * steps) * _up(width, 32), 16 * steps, min(32, _up(width, 8) * 8)
        else:  # columns of a (source block, tap): the mean
            cells, lines = c // deep * kernel_h * kernel_w, _up(_up(deep, 16), _up(deep, 16 * steps)) * 16
            columns = min(32, _up(max(1, kept // (deep * cells)), 8) * 8)
            patches = _up(kept // deep, columns) * _up(deep, 16 * steps)
        read = patches * (columns + lines / 4)  # numbers of a pixel, of grad_out and, for four warps, of x
        macs = rounded * patches * lines * columns
        seconds = {
            "padded products": 2 * macs / (0.6 * _ours_rate(card, dtype, tf32)),
            "cache": size * rounded * read / card.cache,
            "shared memory": rounded * patches * (columns + (lines if by_items or size == 4 else lines / 2)) / (0.7 * card.words),
        }
    elif way == "matrix":
        tile = 16 if width <= 16 else 64
        chunks = _up(width, tile)
        seconds = {  # with a stride each phase of grad_x goes through all weights: as many products as without
            "padded products": 2 * rounded * kept // width * chunks * tile / _ours_rate(card, dtype, tf32),
            "shared memory": 2 * rounded * kept // width * chunks / card.words,  # gathered, with conflicts of banks
        }
    elif way == "scatter":  # per 64 targets and cell (a tap of a source block), as many groups of 8 targets as keep it
        targets, sources = (c, filters) if product == "grad_x" else (filters, c)
        cells = sources // deep * kernel_h * kernel_w
        per_cell = min(64, targets) * kept / max(1, targets * cells * deep)  # of 64 targets, those that keep a cell
        groups = min(per_cell / 8 + 0.5, per_cell) if per_cell < 1 else per_cell / 8 + 0.5
        each = rounded * _up(targets, 64) * cells
        seconds = {
            "padded products": 2 * each * groups * 8 * _up(deep, 32 // size) * (32 // size) / _ours_rate(card, dtype, tf32),
            "shared memory": each * (deep * size / 4 + groups * (deep * size / 8 + 24)) / (0.7 * card.words),
        }
    else:
        words = out_pixels * kept * (2.0 if product == "grad_weight" else 1.5 if width == 1 else 0.6)
        seconds = {"shared memory": words / (0.7 * card.words)}
    seconds["memory"] = (images + size * kept) / (0.8 * card.copy)
    ours_us, bound = _slowest(card, 2 if product == "grad_weight" else 1, seconds)
    making = size * (5 * dense + 2 * kept) / (0.8 * card.copy)
    product_s = max((images + size * dense) / (0.8 * card.copy), 2 * out_pixels * dense / (0.7 * _vendor_rate(card, dtype, tf32)))
    fits = cuda_fits.sparse_convolution(product, x, filters, block, window, (out_h, out_w), size, card.shared_bytes)
    key = ("sparse_convolution", product, x, filters, block, nnz, window, dtype, tf32)
    return Estimate(ours_us, (making + product_s) * 1e6 + 8 * card.node_us, bound, fits, key, way)


def way_of_products(product: str, rows: int, groups: int, inner: int, columns: int) -> str:
    """By warps, or by tiles of blocks: as in csrc/cuda/grouped_mm.cu."""
    m, k, n = sizes_of_products(product, rows, groups, inner, columns)
    return "direct" if m <= 32 and n <= 64 and k <= 128 else "tile"


def sizes_of_products(product: str, rows: int, groups: int, inner: int, columns: int) -> tuple[int, int, int]:
    """``(M, K, N)`` of each: K is summed over. Of ragged groups the mean height."""
    height = _up(rows, max(1, groups))
    return {"forward": (height, inner, columns), "grad_x": (height, columns, inner), "grad_weight": (inner, height, columns)}[product]


@lru_cache(maxsize=4096)
def grouped_mm(
    product: str, rows: int, groups: int, inner: int, columns: int, ragged: bool, dtype: torch.dtype, tf32: bool, card: Card
) -> Estimate:
    """``product`` of ``rows`` rows of all groups with ``groups`` matrices ``[inner, columns]``. torch's ragged products are one by one."""
    size = dtype.itemsize
    moved = size * (rows * (inner + columns) + groups * inner * columns)
    m, k, n = sizes_of_products(product, rows, groups, inner, columns)
    tile = (16, 32) if way_of_products(product, rows, groups, inner, columns) == "direct" else (64, 64)
    tiles = groups * _up(m, tile[0]) * _up(n, tile[1])
    seconds = {
        "memory": moved / (0.8 * card.copy),
        "cache": size * tiles * k * sum(tile) / card.cache,
        "padded products": 2 * tiles * tile[0] * tile[1] * k / (0.6 * _ours_rate(card, dtype, tf32)),
    }
    ours_us, bound = _slowest(card, 1, seconds)
    # torch's tiles are larger, and its small products far from the rate of its large ones
    work = 2 * groups * _up(m, 64) * 64 * _up(n, 64) * 64 * k / (0.7 * _vendor_rate(card, dtype, tf32))
    torch_us, _ = _slowest(card, 2 * groups + 1 if ragged else 1, {"memory": moved / (0.8 * card.copy), "products": work})
    fits = max(rows, groups, inner, columns) <= 2**29 and tiles + _up(rows, 16) < 2**31
    key = ("grouped_mm", product, rows, groups, inner, columns, ragged, dtype, tf32)
    return Estimate(ours_us, torch_us, bound, fits, key)
