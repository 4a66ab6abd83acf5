"""How soon the first token comes and how fast the others follow: the whole system against other engines.

    python -m benchmarks.first_token [--quick] [--rounds N] [--json FILE]

Every contender runs in a process of its own. A round starts them all, takes each measure from one after the other, in
an order that turns from round to round, and ends them; so noise of the machine hits all alike. A ratio is taken within
a round; printed are the median of the rounds' ratios, their quartiles, and the least and the greatest.

What is asked of a contender is in `contender.py`, what is measured in `measures.py`; a peer is one file.
"""
