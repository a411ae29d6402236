"""A queue before one server that takes the same time for every request: what waiting is there without any serving.

No order of work that knows nothing of its requests but their arrival makes the longest waits shorter than first come,
first served. So the quantiles below tell which part of a latency is the load's, and which the server's.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, factorial, floor


def waits(arrivals: Iterable[float], service: float) -> list[float]:
    """Seconds that each of these arrivals waits before its `service` seconds begin, first come, first served.

    By Lindley's recursion (D. V. Lindley, The theory of queues with a single server, 1952).
    """
    free, found = 0.0, []
    for arrival in arrivals:
        begin = max(arrival, free)
        found.append(begin - arrival)
        free = begin + service
    return found


def waits_at_most(load: float, services: float) -> float:
    """P(W <= x) of the queue M/D/1, with x in service times: the share of Poisson arrivals that wait at most that long.

    Erlang, The theory of probabilities and telephone conversations, 1909:

        P(W <= x) = (1 - rho) sum over k = 0 .. floor(x) of (-rho (x - k))^k / k! exp(rho (x - k))

    The terms alternate and grow, so it holds to 1e-6 for x up to 20.
    """
    terms = (
        (-load * (services - k)) ** k / factorial(k) * exp(load * (services - k)) for k in range(floor(services) + 1)
    )
    return (1 - load) * sum(terms)


def md1_quantile(load: float, share: float) -> float:
    """The latency, wait and service together, that this share of the requests stays below, in service times.

    Raises ValueError for a quantile beyond the formula's range.
    """
    low, high = 0.0, 20.0
    if not 0 < load < 1 or waits_at_most(load, high) < share:
        raise ValueError(f"the {share:.0%} quantile at a load of {load} is beyond {high:.0f} service times")
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if waits_at_most(load, middle) >= share else (middle, high)
    return 1 + high
