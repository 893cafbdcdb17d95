import sys

from dpsapf.support.measure import peak_memory_mb


def test_peak_memory_grows_with_what_is_held():
    before = peak_memory_mb()
    held = bytearray(80_000_000)
    held[::4096] = b"x" * len(held[::4096])
    assert before > 5 and (peak_memory_mb() >= before + 40 or sys.platform == "darwin")
