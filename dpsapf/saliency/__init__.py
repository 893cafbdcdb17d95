"""Which matrices matter: noisy scores of the candidates, and the selection from them.

In: latents, candidates.csv, the settings of the release.
Out: plan.json (`plan`), scores.csv with its spend.json, selection.csv. Open `score` first, then `scores` for the sensitivities.
"""
