"""public models: see the module names."""
