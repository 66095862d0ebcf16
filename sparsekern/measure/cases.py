"""The named cases: shapes, densities and batches that the benchmarks time.

A case is data only; :mod:`sparsekern.measure.providers` builds inputs and callables from it. Its ``id`` is stable: it
is the key by which rows of two runs are compared. FLOPs count multiply and add separately (2 per multiply-add).

    linear    layer shapes of transformer and small multilayer nets at 50 to 1 % density: random, balanced and block fan-in,
              tiny fan-ins, sizes off the grid, float32 and bfloat16
    conv      filter groups (Deep Roots layers; strided, dilated and odd ones; bfloat16) and stochastic masks (StochasticNet granularities)
    gemm      many small matrix products in one call
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

LINEAR_SHAPES = ((3072, 768), (768, 3072), (4096, 512), (784, 224), (64, 1024), (1024, 64))  # (in, out)
LINEAR_DENSITIES = (0.5, 0.25, 0.1, 0.05, 0.01)
LINEAR_BATCHES = (1, 8, 64, 256)
FEED_FORWARD = LINEAR_SHAPES[:2]  # the two layers of a transformer's feed-forward block: blocks, 16 bits, training, cold weights
CONV_DENSITIES = (0.5, 0.25, 0.125, 0.067)
CONV_BATCHES = (1, 32)
GRANULARITIES = (("spatial", 1), ("synapse", 1), ("synapse", 4))  # (granularity, share)

# name: (channels in, channels out, map, kernel, padding, groups to time), from the nets of the papers
CONV_LAYERS = {
    "nin_conv1": (3, 192, 32, 5, 2, ()),
    "nin_conv2a": (96, 192, 16, 5, 2, (1, 2, 4, 8, 16)),
    "nin_conv3a": (192, 192, 8, 3, 1, (1, 2, 4, 8)),
    "rn_64_56": (64, 64, 56, 3, 1, (1, 4, 8, 16, 32, 64)),
    "rn_128_28": (128, 128, 28, 3, 1, (1, 2, 4, 8, 16, 32)),
    "rn_256_14": (256, 256, 14, 3, 1, (1, 2, 4, 8, 16)),
    "rn_512_7": (512, 512, 7, 3, 1, (1, 2, 4, 8)),
    "gl_conv2": (64, 192, 56, 3, 1, (1, 4, 8, 16)),
    "gl_3a_3x3": (96, 128, 28, 3, 1, (1, 2, 4, 8)),
    "gl_3a_5x5": (16, 32, 28, 5, 2, (1, 2, 4, 8)),
}
# name: (channels in, channels out, map, kernel, stride, dilation, groups to time): strided, dilated, odd widths and maps, tiny dense 1x1
OTHER_CONV_LAYERS = {
    "strided_64_56": (64, 64, 56, 3, 2, 1, (4, 8)),
    "strided_128_28": (128, 128, 28, 3, 2, 1, (8, 16)),
    "strided_5x5": (64, 64, 28, 5, 2, 1, (4, 8)),
    "dilated_72_14": (72, 36, 14, 3, 1, 2, (9,)),
    "dilated_128_28": (128, 128, 28, 3, 1, 2, (8,)),
    "six_wide_56": (48, 48, 56, 3, 1, 1, (8,)),
    "twelve_wide_7": (192, 192, 7, 3, 1, 1, (16,)),
    "tiny_1x1_16": (16, 16, 7, 1, 1, 1, (1,)),
    "tiny_1x1_64": (64, 64, 14, 1, 1, 1, (1,)),
}
BFLOAT16_GROUPS = {"rn_128_28": (8, 16, 32), "rn_256_14": (4, 8, 16)}  # channels_last: matrix tiles
TRAINED_GROUPS = (("nin_conv2a", 8), ("rn_128_28", 8))  # also as a training step
TRAINED_MASK = ("nin_conv2a", 32, 0.25)  # layer, batch, density: also timed as a training step
STOCHASTIC_LAYERS = ("nin_conv2a", "nin_conv3a", "nin_conv1", "rn_64_56", "rn_128_28", "rn_256_14")


@dataclass(frozen=True)
class Case:
    """What every case has; see the subclasses for sizes."""

    name: str
    batch: int
    dtype: str = field(default="float32", kw_only=True)
    layout: str = field(default="", kw_only=True)
    quick: bool = field(default=False, kw_only=True, compare=False)
    runs: tuple[tuple[str, str], ...] = field(default=(("fwd", "hot"),), kw_only=True, compare=False)  # (mode, cache), by default

    def with_(self, **changes: Any) -> Self:
        """The same case with other values: ``case.with_(batch=8)``."""
        return replace(self, **changes)


@dataclass(frozen=True)
class LinearCase(Case):
    """x ``[batch, in]`` times a sparse weight ``[out, in]``; layout "rows" or "features" (x of strides (1, batch))."""

    in_features: int = 0
    out_features: int = 0
    density: float = 1.0
    block_size: int = 1
    topology: str = "random"

    op = "sparse_linear"

    @property
    def id(self) -> str:
        block = f"/block{self.block_size}" if self.block_size > 1 else ""
        topology = f"/{self.topology}" if self.topology != "random" else ""
        head = f"{self.op}/{self.name}/{self.density:.3g}{block}{topology}"
        return f"{head}/n{self.batch}/{self.dtype}/{self.layout or 'rows'}"

    @property
    def fan_in(self) -> int:
        """Kept inputs per output, in elements; whole blocks."""
        blocks = max(1, round(self.density * self.in_features / self.block_size))
        return blocks * self.block_size

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.out_features * self.fan_in

    @property
    def dense_flops(self) -> int:
        return 2 * self.batch * self.out_features * self.in_features

    @property
    def sizes(self) -> dict[str, int | str]:
        names = ("in_features", "out_features", "block_size", "topology")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class ConvCase(Case):
    """x ``[N, C, H, W]`` and filters ``[K, C/G, k, k]``; stochastic when ``granularity`` is set, else grouped."""

    channels: int = 0
    out_channels: int = 0
    size: int = 0
    kernel: int = 1
    padding: int = 0
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    density: float = 1.0
    granularity: str = ""
    share: int = 1

    @property
    def op(self) -> str:
        return "sparse_conv2d" if self.granularity else "grouped_conv2d"

    @property
    def id(self) -> str:
        what = f"g{self.groups}"
        if self.granularity:
            what = f"{self.granularity}{self.share if self.share > 1 else ''}/{self.density:.3g}"
        return f"{self.op}/{self.name}/{what}/n{self.batch}/{self.dtype}/{self.layout or 'nchw'}"

    @property
    def out_size(self) -> int:
        return (self.size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    @property
    def dense_flops(self) -> int:
        filters = self.out_channels * self.channels * self.kernel**2
        return 2 * self.batch * filters * self.out_size**2

    @property
    def flops(self) -> int:
        """By the arguments; a stochastic layer draws an exact count of positions, so rows report the layer's own."""
        return round(self.dense_flops * self.density / self.groups)

    @property
    def sizes(self) -> dict[str, int | str]:
        names = ("channels", "out_channels", "size", "kernel", "padding", "stride", "dilation", "groups", "granularity", "share")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class GemmCase(Case):
    """``batch`` is the number of products, each ``[m, k] x [k, n]``."""

    m: int = 0
    k: int = 0
    n: int = 0

    op = "grouped_mm"
    density = 1.0

    @property
    def id(self) -> str:
        return f"{self.op}/{self.name}/{self.m}x{self.k}x{self.n}/p{self.batch}/{self.dtype}"

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.m * self.k * self.n

    dense_flops = flops

    @property
    def sizes(self) -> dict[str, int]:
        return {"m": self.m, "k": self.k, "n": self.n}


AnyCase = LinearCase | ConvCase | GemmCase


# what `bench check` asserts: (layer, groups) and (layer, granularity, share, density), one image
QUICK_GROUPS = (("nin_conv2a", 8), ("nin_conv2a", 16), ("nin_conv3a", 4), ("nin_conv3a", 8), ("rn_128_28", 8), ("rn_256_14", 4))
QUICK_MASKS = (
    ("nin_conv2a", "spatial", 1, 0.25),
    ("nin_conv2a", "spatial", 1, 0.067),
    ("nin_conv2a", "synapse", 1, 0.25),
    ("rn_128_28", "spatial", 1, 0.25),
)


def linear_cases() -> list[LinearCase]:
    """Everything that ``bench linear`` times by default; see the functions it is made of."""
    return [
        *_random_cases(),
        *_block_cases(),
        *_balanced_cases(),
        *_odd_cases(),
        *_bfloat16_cases(),
    ]


def _linear(shape: tuple[int, int], batch: int, density: float, **more: Any) -> LinearCase:
    """The case of one layer; the feed-forward shapes also as a training step and with cold weights, where those differ most."""
    case = LinearCase(f"{shape[0]}-{shape[1]}", batch, in_features=shape[0], out_features=shape[1], density=density, **more)
    runs = [("fwd", "hot")]
    if shape in FEED_FORWARD and case.topology == "random" and density in (0.25, 0.1, 0.05):
        if batch == 64 and case.block_size in (1, 32):
            runs.append(("fwd_bwd", "hot"))
        if batch == 1 and shape == FEED_FORWARD[0] and case.block_size in (1, 32):
            runs.append(("fwd", "cold"))
    quick = shape == (3072, 768) and density in (0.25, 0.1) and batch in (1, 64) and case.block_size < 32
    return case.with_(runs=tuple(runs), quick=quick and case.dtype == "float32" and case.topology == "random")


def _random_cases() -> list[LinearCase]:
    """Random fan-in for every shape, density and batch, the tiny fan-ins 8 and 14, and 75 %, where many a layer is better off dense."""
    grid = [(shape, density) for shape in LINEAR_SHAPES for density in LINEAR_DENSITIES if round(density * shape[0]) >= 1]
    grid += [((4096, 512), 8 / 4096), ((784, 224), 14 / 784), *((shape, 0.75) for shape in FEED_FORWARD)]
    return [_linear(shape, batch, density) for shape, density in grid for batch in LINEAR_BATCHES]


def _block_cases() -> list[LinearCase]:
    """Blocks of 16, 32 and 64 for the feed-forward shapes."""
    return [
        _linear(shape, batch, density, block_size=block_size)
        for shape in FEED_FORWARD
        for block_size in (16, 32, 64)
        for density in (0.75, *LINEAR_DENSITIES)
        if round(density * shape[0] / block_size) >= 1 and (density < 0.75 or block_size == 32)
        for batch in LINEAR_BATCHES
    ]


def _balanced_cases() -> list[LinearCase]:
    """16, 8, 3, 2 and 1 of every 32 inputs kept: another network than a random one of equal density, so rows of its own."""
    if "balanced" not in linear_topologies():
        return []
    return [
        _linear(shape, batch, kept / 32, topology="balanced")
        for shape in (*FEED_FORWARD, (4096, 512))
        for kept in (16, 8, 3, 2, 1)
        for batch in LINEAR_BATCHES
    ]


def _odd_cases() -> list[LinearCase]:
    """Off the grid: sizes that no vector divides, one output, a fan-in of one, and batches of 3, 17 and 1000; and a layer so small that
    its time is the call's, forward and training."""
    odd = [((1001, 333), 0.1, 1), ((1000, 300), 0.001, 1), ((500, 1), 0.1, 1), ((848, 400), 0.1, 16)]
    grid = [(shape, density, block, batch) for shape, density, block in odd for batch in (1, 3, 17, 1000)]
    grid += [(FEED_FORWARD[0], 0.1, 1, batch) for batch in (3, 17, 1000)]
    call = _linear((16, 16), 1, 0.25).with_(runs=(("fwd", "hot"), ("fwd_bwd", "hot")))
    return [call, *(_linear(shape, batch, density, block_size=block) for shape, density, block, batch in grid)]


def _bfloat16_cases() -> list[LinearCase]:
    """16-bit rows: random fan-in and 32 x 32 blocks for the feed-forward shapes, other blocks and balanced rows at some points."""
    cases = [case for case in [*_random_cases(), *_block_cases()] if (case.in_features, case.out_features) in FEED_FORWARD]
    cases = [case for case in cases if case.block_size in (1, 32) or (case.block_size == 16 and case.in_features == 3072)]
    cases += [case for case in _balanced_cases() if case.in_features == 3072 and case.density in (0.25, 3 / 32)]
    return [case.with_(dtype="bfloat16", quick=False) for case in cases]


def linear_topologies() -> tuple[str, ...]:
    """The names that ``SparseLinear(topology=...)`` knows."""
    from sparsekern.nn.sparse_linear import TOPOLOGIES

    return tuple(TOPOLOGIES)


def conv_cases() -> list[ConvCase]:
    """Filter groups, in both layouts, and stochastic masks, whose rows of the other layout are timed beside them ("ours_other")."""
    cases = []
    for name, (channels, out_channels, size, kernel, padding, all_groups) in CONV_LAYERS.items():
        shape: dict[str, Any] = dict(channels=channels, out_channels=out_channels, size=size, kernel=kernel, padding=padding)
        for batch in CONV_BATCHES:
            for layout in ("nchw", "channels_last"):
                for groups in all_groups:
                    quick = batch == 1 and (name, groups) in QUICK_GROUPS
                    case = ConvCase(name, batch, groups=groups, layout=layout, quick=quick, **shape)
                    if batch > 1 and (name, groups) in TRAINED_GROUPS:
                        case = case.with_(runs=(("fwd", "hot"), ("fwd_bwd", "hot")))
                    cases.append(case)
            if name not in STOCHASTIC_LAYERS:
                continue
            for granularity, share in GRANULARITIES:
                for density in CONV_DENSITIES:
                    quick = batch == 1 and (name, granularity, share, density) in QUICK_MASKS
                    trained = (name, batch, density) == TRAINED_MASK
                    cases.append(
                        ConvCase(
                            name,
                            batch,
                            density=density,
                            granularity=granularity,
                            share=share,
                            layout="nchw",
                            quick=quick,
                            runs=(("fwd", "hot"), ("fwd_bwd", "hot")) if trained else (("fwd", "hot"),),
                            **shape,
                        )
                    )
    return [*cases, *_other_conv_cases(), *_bfloat16_conv_cases(cases)]


def _other_conv_cases() -> list[ConvCase]:
    """Layers that the papers' nets do not have, padded so that a stride of 1 keeps the map's size."""
    cases = []
    for name, (channels, out_channels, size, kernel, stride, dilation, all_groups) in OTHER_CONV_LAYERS.items():
        shape: dict[str, Any] = dict(
            channels=channels, out_channels=out_channels, size=size, kernel=kernel, stride=stride, dilation=dilation
        )
        for batch in CONV_BATCHES:
            for layout in ("nchw", "channels_last"):
                padding = dilation * (kernel // 2)
                cases += [ConvCase(name, batch, groups=groups, layout=layout, padding=padding, **shape) for groups in all_groups]
    return cases


def _bfloat16_conv_cases(cases: list[ConvCase]) -> list[ConvCase]:
    chosen = [case for case in cases if not case.granularity and case.groups in BFLOAT16_GROUPS.get(case.name, ())]
    chosen = [case for case in chosen if case.layout == "channels_last"]
    both = (("fwd", "hot"), ("fwd_bwd", "hot"))
    return [case.with_(dtype="bfloat16", quick=False, runs=both if case.batch > 1 else case.runs) for case in chosen]


def gemm_cases() -> list[GemmCase]:
    """Group counts and sizes of the 1x1 layers that follow filter groups, and of small expert layers."""
    sizes = {"root_1x1": (784, 16, 32), "small": (32, 32, 32), "expert": (64, 256, 256)}
    return [
        GemmCase(name, batch, m=m, k=k, n=n, quick=name == "small" and batch == 64)
        for name, (m, k, n) in sizes.items()
        for batch in (8, 64)
    ]


DTYPES = ("float32", "float64", "float16", "bfloat16")
LAYOUTS: dict[str, tuple[str, ...]] = {"linear": ("rows", "features"), "conv": ("nchw", "channels_last"), "gemm": ()}
BUILDERS: dict[str, Callable[[], Sequence[AnyCase]]] = {"linear": linear_cases, "conv": conv_cases, "gemm": gemm_cases}


def select(
    kind: str,
    *,
    match: str = "",
    batches: tuple[int, ...] = (),
    densities: tuple[float, ...] = (),
    dtypes: tuple[str, ...] = (),
    layouts: tuple[str, ...] = (),
    quick: bool = False,
) -> list[AnyCase]:
    """The cases of "linear", "conv" or "gemm" that fit.

    Args:
        match: words that the id must contain, separated by blanks or commas.
        batches: these batches in place of the standard ones.
        densities: these densities, to three digits, as ids print them.
        dtypes: these dtypes, as in the cases if empty.
        layouts: these layouts, as in the cases if empty.
        quick: only the small subset that is asserted against floors.

    Example:
        >>> [case.id for case in select("linear", match="784-224 0.25", batches=(64,))]
        ['sparse_linear/784-224/0.25/n64/float32/rows']
    """
    if kind not in BUILDERS:
        raise ValueError(f"bench: kind must be one of {', '.join(BUILDERS)}; got {kind}")
    for arg, given, allowed in (("dtypes", dtypes, DTYPES), ("layouts", layouts, LAYOUTS[kind])):
        if not set(given) <= set(allowed):
            raise ValueError(f"bench: {arg} of {kind} must be among {', '.join(allowed) or 'none'}; got {', '.join(given)}")
    chosen: dict[str, AnyCase] = {}
    printed = {f"{density:.3g}" for density in densities}
    known = {case.id: case for case in BUILDERS[kind]()}
    for base in known.values():
        if (quick and not base.quick) or (printed and f"{base.density:.3g}" not in printed):
            continue
        for batch in batches or (base.batch,):
            for dtype in dtypes or (base.dtype,):
                for layout in layouts or (base.layout,):
                    case = base.with_(batch=batch, dtype=dtype, layout=layout)
                    case = known.get(case.id) or case.with_(runs=(("fwd", "hot"),))  # extra runs are of the named case alone
                    parts = case.id.split("/")
                    if all(word in parts or word in case.id for word in match.replace(",", " ").split()):
                        chosen.setdefault(case.id, case)
    return list(chosen.values())
