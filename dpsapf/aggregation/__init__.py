"""aggregation: see the module names."""
