"""Public diffusion models in diffusers layout, and the images encoded by them.

In: an entry of config/public_models.yaml; dataset.safetensors.
Out: model.json, candidates.csv, latents.safetensors, prompts.safetensors, denoiser and objective. Open `prepare` first,
then `families`.
"""
