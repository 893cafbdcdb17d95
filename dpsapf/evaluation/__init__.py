"""Judges synthetic images on real ones, outside the guarantee.

In: samples, the real images, an entry of config/protocols.yaml.
Out: fidelity.json, utility.json, the ceiling. Open `evaluate` first.
"""
