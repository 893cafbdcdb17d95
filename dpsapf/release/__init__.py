"""A run that its owner publishes: images, datasheet, privacy statement; and the register of what was published before.

Everything else about a run stays on the private side. What is written here is listed in `dpsapf.release.release`.
"""
