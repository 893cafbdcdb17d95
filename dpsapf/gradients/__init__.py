"""Per-image gradients and their norms: what saliency and fine-tuning stand on.

In: a model, its layers' inputs and output gradients.
Out: squared norms, clipped sums. Open `ghost_norms` first; `per_image` chooses how a run's gradients are had.
"""
