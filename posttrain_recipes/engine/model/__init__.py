"""The base model in memory, its adapters, and the arithmetic of its layers."""
