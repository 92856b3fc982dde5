"""Checkpoints and training runs on disk, written atomically."""
