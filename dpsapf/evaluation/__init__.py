"""evaluation: see the module names."""
