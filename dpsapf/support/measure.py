"""What a process cost."""

import re
import resource
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_memory_mb(device: str = "cpu") -> float:
    """Return the process' peak resident memory so far (cpu), or the GPU's peak allocation (cuda), in MB (10^6 bytes).

    Linux' own figure is read where there is one: ``getrusage`` also counts what the process that started this one held.
    """
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / 1e6
    if STATUS.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes
