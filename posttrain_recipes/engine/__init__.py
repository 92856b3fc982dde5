"""The embedded engine: a loopback server that speaks Tinker's wire protocol.

The wire is the only door to it, so a recipe cannot tell it from the hosted service. Nothing heavy
is imported here: `posttrain_recipes.engine.launch` starts the engine in a process of its own, and
torch, transformers and the web server are imported there alone.

    launch       start and stop an engine as a child process
    __main__     the child: command line, sockets, signals
    app          the routes of Tinker's protocol, put together with those of the rooms below

Each room stands on those after it:

    openai/      OpenAI's routes: their requests, responses, and tokens that become text
    http/        what routes are made of; the token and the Host header
    core/        what each request means; the scheduler, futures, and the registry of what is known
    generate/    sampling: a batcher, its slots, the prefix cache, the choice of a token
    train/       forward and backward passes, losses, custom losses  (torch, on the worker, from
    model/       the base model, LoRA adapters, decoder and kernels   generate/ down to here)
    storage/     checkpoints on disk, whole or not at all
    wire/        bytes <-> small dataclasses
"""
