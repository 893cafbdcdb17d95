"""Private Evolution: images of the public model evolve by noisy votes of the private ones; nothing is trained.

In: the prepared dataset, the public model, a plan. Out: population.safetensors (noisy votes, images), spend.json,
private.json; after the audit samples.npz. Open `votes` first: it is all that touches private images.
"""
