"""Draws synthetic images from an audited run.

In: ledger.json, the weights that it names, the public model.
Out: samples.npz, a contact sheet. There is one file: `sample`.
"""
