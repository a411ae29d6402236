"""The engine: models, residency, weights and stages, without anything of HTTP or Ray."""

import os

# The same bits for the same request are promised, but MKL gives them only in this mode: otherwise the number of threads
# and the order in which they happen to finish show in the last bit. It is read at the first product of a process.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
