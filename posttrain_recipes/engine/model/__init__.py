"""The base model in memory, LoRA adapters, the decoder and its kernels."""
