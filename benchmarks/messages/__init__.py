"""What a message costs, from a call in the process to a tensor between two: ours against its peers.

    python -m benchmarks.messages [--quick] [--rounds N] [--only NAME] [--json FILE]

A *line* is one question that several contenders are asked, each in processes of its own. The processes of a line are
started together; then each round asks them one after the other, in an order that turns from round to round, so noise of
the machine hits all alike; then they end. A ratio is taken within a round; printed are the median of the rounds'
ratios and their quartiles, and for each goal whether it was met.

`lines.py` says what is measured and which goals there are; a file beside it holds one kind of contender.
"""
