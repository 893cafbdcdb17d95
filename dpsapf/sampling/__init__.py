"""sampling: see the module names."""
