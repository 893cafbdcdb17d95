"""finetune: see the module names."""
