import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
"""Before torch is loaded. Threads that spin while they wait make tiny tensors ten times slower on a busy machine."""
