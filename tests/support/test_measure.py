import subprocess
import sys

HELD = """
from dpsapf.support.measure import peak_memory_mb
before = peak_memory_mb()
held = bytearray(80_000_000)
held[::4096] = b"x" * len(held[::4096])
print(before, peak_memory_mb())
"""


def test_peak_memory_grows_with_what_is_held():
    """In a process of its own: the peak of a process that runs other tests may be far above what it holds now."""
    printed = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True).stdout
    before, after = map(float, printed.split())
    assert 5 < before + 70 < after < before + 120
