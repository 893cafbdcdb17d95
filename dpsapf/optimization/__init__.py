"""What turns a private gradient into a step, and what noise alone does through it."""
