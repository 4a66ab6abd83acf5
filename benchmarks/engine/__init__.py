"""How fast the engine itself is, against llama.cpp and transformers, and what the system around it costs.

    python -m benchmarks.engine [--only NAME ...] [--rounds N] [--quick] [--json FILE] [--plot FILE]

Contenders are those of `benchmarks.first_token`: worker processes that are asked in rounds, in an order that turns;
ratios are taken within a round. A *line* (`line.py`) is what is measured and what it ought to be; lines that can share
their rounds stand in one group. `same_file.py` and `big_model.py` compare with peers; the other lines are one module
each. `lines.py` has them all.
"""
