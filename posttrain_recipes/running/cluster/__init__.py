"""Stages on other machines: a task of a cluster each, with an engine of its own.

    driver.py      has each stage done by a task, hears of it, and takes in what it left
    ray_tasks.py   Ray: what is sent to nodes, and the tasks
    node.py        what runs on a node: the stage, as on one machine, in a home that lasts as long
    relay.py       what node and driver say to each other: events of a stage, as they happen
    shared.py      the part of the home that both see, below one fsspec URL

The driver alone writes to the home and to MLflow. What a node leaves is below the URL before it is
told, so a stage whose node died is run again by Ray and goes on from there.
"""
