"""Trains what a run selected, by DP-SGD, exactly as its plan says.

In: plan.json, selection.csv, latents, the public model.
Out: weights.safetensors, spend.json, a private log. Open `train` first, then `dp_sgd`.
"""
