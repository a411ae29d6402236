"""The moments at which an open loop sends its requests. They are drawn before, so no answer moves them."""

from __future__ import annotations

from random import Random


def poisson(rate: float, seconds: float, seed: int) -> tuple[float, ...]:
    """Seconds from the start, in order: arrivals that know nothing of each other, `rate` of them a second.

    Exactly round(rate * seconds) come, so that also a short series has the rate that it names. Given their number, the
    arrivals of a Poisson process are independent and uniform (Ross, Stochastic Processes, theorem 2.3.1).
    """
    random = Random(seed)
    return tuple(sorted(random.uniform(0, seconds) for _ in range(round(rate * seconds))))


def bursts(rate: float, size: int, seconds: float, seed: int) -> tuple[float, ...]:
    """The same number of arrivals in bursts: `size` requests come at one moment, and the moments are Poisson's."""
    return tuple(moment for moment in poisson(rate / size, seconds, seed) for _ in range(size))
