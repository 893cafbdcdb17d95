"""saliency: see the module names."""
