"""How many texts a second get vectors, for an index; and how soon one text does, for a search.

    python -m benchmarks.embedding [--only NAME ...] [--rounds N] [--quick] [--alone] [--json FILE]

Lines and rounds are those of `benchmarks.messages`: each contender has a process of its own, both are started together
and asked one after the other in each round, in an order that turns; ratios are taken within a round. All read the same
files and the same texts, which are Python's own documentation. Ours is asked through a node that has its default model
loaded beside.
"""
