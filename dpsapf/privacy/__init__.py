"""privacy: see the module names."""
