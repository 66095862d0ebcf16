"""What :func:`sparsekern.optimize` did, and what it brought."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class OptimizeReport:
    """Printable; ``asdict`` gives the JSON.

    ``times_us`` holds the median of every way that was timed against the others, in microseconds per call on the example, the model
    as it came under ``"model"``; ``chosen`` is the way that is returned. ``error``: largest difference of an output from the model's,
    relative to the largest magnitude of that output.
    """

    folded: list[str] = field(default_factory=list)  # batch-norms, by name
    swapped: list[str] = field(default_factory=list)  # nn.Conv2d -> GroupedConv2d
    fused: list[str] = field(default_factory=list)  # convolutions that took a ReLU
    summed: list[str] = field(default_factory=list)  # convolutions that took a shortcut and a ReLU
    pooled: list[str] = field(default_factory=list)  # poolings on our kernel
    normalised: list[str] = field(default_factory=list)  # local response normalisations in channels_last
    packed: list[str] = field(default_factory=list)
    chains: dict[tuple[str, ...], float] = field(default_factory=dict)  # convolutions in one call -> their time one by one over it
    joined: list[tuple[str, ...]] = field(default_factory=list)  # packed convolutions that write into their concatenation
    densified: list[str] = field(default_factory=list)  # sparse convolutions that are faster dense and packed
    sequences: list[tuple[str, ...]] = field(default_factory=list)  # layers in one call, without gaps between them
    left: dict[str, str] = field(default_factory=dict)  # what was not done -> why
    times_us: dict[str, float] = field(default_factory=dict)
    chosen: str = "model"
    error: float = 0.0

    @property
    def speedup(self) -> float:
        """Of the chosen way over the model as it came; 1.0 if nothing was timed."""
        return self.times_us["model"] / self.times_us[self.chosen] if self.times_us else 1.0

    def __str__(self) -> str:
        did = [
            f"{len(names)} {what if len(names) > 1 else what.replace('s ', ' ', 1)}"
            for what, names in (
                ("batch-norms folded", self.folded),
                ("convolutions swapped", self.swapped),
                ("shortcuts fused", self.summed),
                ("ReLUs fused", self.fused),
                ("poolings swapped", self.pooled),
                ("normalisations swapped", self.normalised),
                ("layers packed", self.packed),
                ("concatenations written in place", self.joined),
                ("sparse convolutions made dense", self.densified),
                ("sequences in one call", self.sequences),
            )
            if names
        ]
        kept = "; the model as it came is the fastest" if self.chosen == "model" and len(self.times_us) > 1 else ""
        lines = ["optimize: " + (", ".join(did) or "nothing to do") + kept]
        lines += [
            f"  {name:40s} {us / 1000:9.3f} ms {'<- chosen, ' + format(self.speedup, '.2f') + 'x' if name == self.chosen else ''}".rstrip()
            for name, us in self.times_us.items()
        ]
        lines += [f"  {' + '.join(names)}: in one call {gain:.2f}x" for names, gain in self.chains.items()]
        lines += [f"  {what}: {why}" for what, why in self.left.items()]
        lines.append(f"  largest difference from the model {self.error:.1e}")
        return "\n".join(lines)
