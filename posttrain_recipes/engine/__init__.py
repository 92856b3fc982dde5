"""The embedded engine: a loopback server that speaks Tinker's wire protocol.

The wire is the only door to it, so a recipe cannot tell it from the hosted service. Nothing heavy
is imported here: `posttrain_recipes.engine.launch` starts the engine in a process of its own, and
torch, transformers and the web server are imported there alone.

    launch       start and stop an engine as a child process
    __main__     the child: command line, sockets, signals
    api          HTTP: routes, authentication, limits
    wire         bytes <-> small dataclasses
    service      sessions, models and samplers: what each request means
    scheduler    futures, ordering, one worker thread
    backend      base models, LoRA adapters, gradients, Adam
    losses       loss functions over token log-probabilities
    sampler      batched generation and prompt scoring
    checkpoints  what is kept on disk
"""
