"""The OpenAI-compatible API: chat completions and completions, by the same batches as Tinker's."""
