"""OpenAI's routes: chat completions and completions over the same sampler."""
