"""What a process cost."""

import resource
import sys


def peak_memory_mb(device: str = "cpu") -> float:
    """Return the process' peak resident memory so far (cpu), or the GPU's peak allocation (cuda), in MB (10^6 bytes)."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
