"""Code that a model wrote, run in a process of its own that can do nothing else."""
