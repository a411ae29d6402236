"""A tensor on its way. Apart from `deployments.wire`, because the ingress meets what stages send to each other: it
would import torch for that, which takes seconds of its first request and 190 MB."""

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
