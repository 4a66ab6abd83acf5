"""What a node does when its clients do not read, ask for more than they take, or ask five times too much.

    python -m benchmarks.overload [--quick] [--only NAME] [--json FILE]

Three scenarios, each with a node in a process of its own and its clients in others, over plain sockets: see
`slow_readers.py`, `reply_floods.py` and `rush.py`. Measured before, during and after are the latencies of those who
behave, the node's memory, and who was named as the culprit. There are no peers and no rounds: a scenario is a story
with an end, and what is printed are its figures and whether our goals were met.
"""
