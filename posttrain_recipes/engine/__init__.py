"""The embedded engine: a loopback server that speaks Tinker's wire protocol.

The wire is the only door to it, so a recipe cannot tell it from the hosted service. Nothing heavy
is imported here: `posttrain_recipes.engine.launch` starts the engine in a process of its own, and
torch, transformers and the web server are imported there alone.

    launch       start and stop an engine as a child process
    __main__     the child: command line, sockets, signals
    access       the token, the Host header, signed addresses
    api          the routes of Tinker's protocol; web: what routes are made of
    openai       the routes of OpenAI's; chat: its requests, replies: its answers, text: tokens
    metrics      what is counted and logged
    wire         bytes <-> small dataclasses
    service      sessions; training and sampling: what each request means; listings: look-ups;
                 transfers: exports, downloads, copies
    state        what is known while it runs
    scheduler    ordering, batches, cancelling, one worker thread
    futures      requests and their answers, and how long both are remembered
    checkpoints  what is kept on disk; files: whole or not at all
    backend      base models, forward and backward passes      (torch, on the worker, from here on)
    lora         adapters and Adam
    losses       loss functions over token log-probabilities
    sampler      requests for samples, prompt scores, the choice of a token
    generation   batches that requests join and leave
    cache        keys and values
"""
