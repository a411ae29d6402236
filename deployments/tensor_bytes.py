"""A tensor as it is sent between processes.

This module is apart from `deployments.stage.wire` because the ingress unpickles it too. Importing torch there would
cost 190 MB, and seconds of the first request.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TensorBytes:
    """The bytes of a tensor, its shape, and the name of its torch dtype."""

    data: npt.NDArray[np.uint8]
    dtype: str
    shape: tuple[int, ...]
