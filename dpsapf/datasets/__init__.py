"""datasets: see the module names."""
