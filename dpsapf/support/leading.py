"""Which of the processes that share a job says and writes what all do; known without torch, which takes seconds to load."""

import os


def leads() -> bool:
    """Say whether this process writes and tells, of those that torchrun started; one that it did not start does."""
    return os.environ.get("RANK", "0") == "0"
