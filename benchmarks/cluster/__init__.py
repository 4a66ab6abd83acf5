"""What it costs to be several nodes: calls, maps and chats between real ones, and what dies with one of them.

    python -m benchmarks.cluster [--only NAME ...] [--rounds N] [--quick] [--alone] [--json FILE]
    python -m benchmarks.cluster.simulation    # what membership costs at up to 1,000 nodes

Nodes are processes that a cluster links, as `mk boot` has them. Lines, rounds and the table are those of
`benchmarks.scheduling`. `lines.py` says what is measured and which goals there are; a file beside it holds one kind of
contender. `simulation.py` is another program: memberships without processes, on a network that is played.
"""
