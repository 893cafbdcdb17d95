"""DP-SAPF: saliency-aware parameter fine-tuning of public diffusion models under differential privacy."""

__version__ = "0.1.0"
