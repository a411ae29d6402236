"""A tensor on its way between processes.

It is apart from `deployments.stage.wire` because the ingress meets it too. Importing torch there would take 190 MB, and
seconds of the first request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TensorBytes:
    """A tensor's bytes and how to read them; `dtype` is the name of torch's."""

    data: npt.NDArray[np.uint8]
    dtype: str
    shape: tuple[int, ...]
