"""Tracking: runs in MLflow, in a local store and, if one is configured, on a tracking server."""
