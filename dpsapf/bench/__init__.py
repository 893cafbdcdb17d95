"""What saliency and DP-SGD cost against plain training.

In: a model of the packaged or of Stable Diffusion's size; no data.
Out: one row per comparison. There is one file: `compare`.
"""
