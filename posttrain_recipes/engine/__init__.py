"""The embedded engine: a loopback server that speaks Tinker's wire protocol.

Clients reach it by the protocol alone, so a recipe cannot tell it from the hosted service. Nothing
heavy is imported here: `posttrain_recipes.engine.launch` starts the engine in a process of its own,
and torch, transformers and the web server are imported there alone.

    launch       start and stop an engine as a child process
    __main__     the child: command line, sockets, signals
    calibrate    how fast this machine is, measured before anything runs
    app          the ASGI application: routes of Tinker's protocol, and OpenAI's

Each package imports only those listed after it:

    openai/      the OpenAI-compatible API: requests, responses, detokenization
    http/        helpers for routes; authentication by token and Host header
    core/        request handlers, the scheduler, futures, and the state in memory
    generate/    sampling: continuous batching, slots, the prefix cache, sampling from logits
    train/       forward and backward passes, losses, custom losses  (torch, on the worker, from
    model/       the base model, LoRA adapters, decoder and kernels   generate/ down to here)
    storage/     checkpoints on disk, written atomically
    wire/        the protocol's messages: bytes <-> dataclasses
"""
