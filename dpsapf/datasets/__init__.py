"""Sensitive images, as their owners publish them.

In: an entry of config/datasets.yaml.
Out: dataset.safetensors with its splits, dataset.json, a contact sheet. Open `prepare` first, then the loader that you want.
"""
