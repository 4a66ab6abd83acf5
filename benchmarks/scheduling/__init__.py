"""What it costs to decide whose turn is next and to spread work over cores, and whether shares are what they should be.

    python -m benchmarks.scheduling [--only NAME ...] [--rounds N] [--quick] [--alone] [--json FILE] [--plot FILE]

Lines and rounds are those of `benchmarks.messages`: who takes part in a line has a process of its own, all are started
together and asked one after the other in each round, in an order that turns; ratios are taken within a round. Where
ours is compared with itself under other conditions, one process does both in turn, within the round as well. The table
is that of `benchmarks.engine`. `lines.py` says what is measured and which goals there are; a file beside it holds one
kind of contender.
"""
