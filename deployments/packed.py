"""A tensor on its way between processes.

It is apart from `deployments.wire` because the ingress meets it too: importing torch would take seconds of its first
request and 190 MB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Packed:
    """A tensor's bytes and how to read them; `dtype` is the name of torch's."""

    data: npt.NDArray[np.uint8]
    dtype: str
    shape: tuple[int, ...]
