"""What an accelerator makes of the torch decoder: each way to decode beside the plain one, prompts, and swapped pages.

    python -m benchmarks.accelerator
    python -m benchmarks.accelerator --shape 8b --flex

Needs no file and no connection: the weights are random.
"""
