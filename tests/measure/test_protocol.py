"""The timing protocol: what is called how often, in which order, and how two timings are judged."""

import os
import time

import pytest
import torch

from sparsekern.measure import protocol
from sparsekern.measure.protocol import Timing, interleave, judge, pin, ratio, threads, verdict, winner


def timing(name, *samples):
    return Timing(name, samples, samples, 1)


def test_order_turns_around_and_every_sample_is_reported():
    seen, told = [], []
    calls = {"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}
    times = interleave(calls, rounds=2, before_each=lambda: seen.append("|"), progress=lambda *at: told.append(at))
    assert "".join(seen) == "|a|b|b|a"
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert list(times) == ["a", "b"]
    assert all(t.calls_per_round == 1 and len(t.samples_us) == 2 for t in times.values())


def test_short_calls_are_repeated_until_the_clock_can_read_them():
    t = interleave({"nothing": lambda: None}, rounds=3, min_time_ms=1.0)["nothing"]
    assert t.calls_per_round > 1
    assert t.median_us > 0


def test_cpu_time_leaves_out_waiting():
    t = interleave({"wait": lambda: time.sleep(0.003)}, rounds=3, min_time_ms=0.1)["wait"]
    assert t.median_us >= 2900
    assert t.cpu_median_us < t.median_us / 2


def test_quantiles():
    t = timing("a", *map(float, range(1, 12)))
    assert (t.p20_us, t.median_us, t.p80_us) == (3.0, 6.0, 9.0)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((1.0, 1.1, 1.2), (2.0, 2.1, 2.2), "faster"),
        ((2.0, 2.1, 2.2), (1.0, 1.1, 1.2), "slower"),
        ((1.0, 1.1, 1.2), (1.0, 1.12, 1.3), "same"),
        ((1.0, 1.5, 3.0), (1.0, 2.0, 3.0), "ambiguous"),
    ],
)
def test_judge(a, b, expected):
    assert judge(a, b) == expected


def test_verdict_and_winner():
    fast, slow, near = timing("fast", 1.0, 1.1, 1.2), timing("slow", 3.0, 3.1, 3.2), timing("near", 1.1, 1.15, 1.3)
    assert verdict(fast, slow) == "faster"
    assert winner({"fast": fast, "slow": slow}) == "fast"
    assert winner({"fast": fast, "slow": slow, "near": near}) == "no winner"


def test_ratio_is_paired_by_round():
    a, b = timing("a", 1.0, 2.0, 4.0), timing("b", 2.0, 4.0, 8.0)  # the machine slows down, the ratio does not
    assert ratio(a, b) == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match=r"^ratio: b must be timed with a; got 1 rounds for 3$"):
        ratio(a, timing("b", 1.0))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_pin_and_back():
    before = os.sched_getaffinity(0)
    with pin(min(before)) as core:
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ValueError, match=r"^pin: core must be one of .*; got 9999$"), pin(9999):
        pass
    with pin(None) as core:
        assert core is None


def test_threads_and_back():
    before = torch.get_num_threads()
    with protocol.one_thread():
        assert torch.get_num_threads() == 1
        with threads(2):
            assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == before
