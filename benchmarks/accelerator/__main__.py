"""`python -m benchmarks.accelerator`: measures, and prints a line for each; above 1x is a win over plain steps."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.accelerator.random_checkpoint import SHAPES, RandomCheckpoint
from benchmarks.machine import this_machine
from services.inference.cache.host import HostTier
from services.inference.cache.keys import PAGE
from services.inference.eager.decoder import Decoder, choose_dtype
from services.inference.engine.forward import Part
from services.inference.engine.sampler import ResolvedSampling, SamplerState, sample

STREAMS = (1, 8, 32)
CHUNK = 512  # tokens of a prompt in a step, as the engine's budget is
WARM_UP = 8  # steps: kernels are chosen, graphs recorded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 where the device is not there."""
    args = _arguments(arguments)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("torch sees no CUDA device: nothing was measured", file=sys.stderr)
        return 1
    for line in this_machine().lines():
        print(line)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    config, dtype = SHAPES[args.shape], choose_dtype(device)
    print(f"{name}, torch {torch.__version__}, {config.parameters / 1e9:.2f} billion random weights in {dtype}")
    print(f"context {args.context}, {args.steps} steps a round, medians of {args.rounds} rounds\n", flush=True)
    ways = {"plain": {"fixed": False}, "fixed": {"fixed": True}}
    if args.flex:
        ways["fixed, flex"] = {"fixed": True, "flex": True}
    checkpoint = RandomCheckpoint(config, device)
    plain: dict[int, float] = {}
    for way, options in ways.items():
        decoder = Decoder(checkpoint, device=device, dtype=dtype, **options)
        for streams in STREAMS[: args.sizes]:
            rate = _decode(decoder, streams, args)
            plain.setdefault(streams, rate)
            print(
                f"decode, {streams:3} streams, {way:12} {rate:10,.0f} tokens/s {rate / plain[streams]:7.2f}x",
                flush=True,
            )
        if way == "fixed":
            print(f"prompt of {args.context} tokens, alone {_prompt(decoder, args):14,.0f} tokens/s")
            _swap(decoder, args)
        del decoder
    return 0


def _decode(decoder: Decoder, streams: int, args: argparse.Namespace) -> float:
    """Tokens a second of all streams, sampled: what the engine does in a step."""
    length = args.context + WARM_UP + args.steps * args.rounds
    pages = -(-length // PAGE)
    storage = decoder.storage(streams * pages)
    tables = [storage.table(range(one * pages, (one + 1) * pages)) for one in range(streams)]
    states = [
        SamplerState(ResolvedSampling(temperature=0.0), [], decoder.config.vocab_size, decoder.device)
        for _ in range(streams)
    ]
    for table in tables:
        for start in range(0, args.context, CHUNK):
            count = min(CHUNK, args.context - start)
            decoder.forward(storage, [Part([1] * count, start, table, 0)])
    at = args.context

    def step() -> None:
        nonlocal at
        sample(decoder.forward(storage, [Part([1], at, table) for table in tables]), states)
        at += 1

    for _ in range(WARM_UP):
        step()
    return streams * args.steps / _median(lambda: [step() for _ in range(args.steps)], args.rounds)


def _prompt(decoder: Decoder, args: argparse.Namespace) -> float:
    storage = decoder.storage(-(-args.context // PAGE))
    table = storage.table(range(-(-args.context // PAGE)))

    def read() -> None:
        for start in range(0, args.context, CHUNK):
            count = min(CHUNK, args.context - start)
            decoder.forward(storage, [Part([1] * count, start, table)]).sum().item()

    read()
    return float(args.context / _median(read, args.rounds))


def _swap(decoder: Decoder, args: argparse.Namespace) -> None:
    """What the host tier saves: pages of the context out and in again, beside computing them."""
    count = max(1, args.context // PAGE)
    storage = decoder.storage(count)
    host = HostTier(storage, count * storage.page_bytes, pinned=decoder.device.type == "cuda")
    keys = [page.to_bytes(32, "big") for page in range(count)]

    def out() -> None:
        host.forget()
        for page, key in enumerate(keys):
            host.keep(key, page)
        storage.read(0)

    def back() -> None:
        host.lift(keys, range(count))
        storage.read(0)

    out()
    size = count * storage.page_bytes
    for what, do in (("out", out), ("in", back)):
        seconds = _median(do, args.rounds)
        print(
            f"pages of {count * PAGE} tokens {what:3} {size / seconds / 1e9:10.1f} GB/s, {1000 * seconds:.2f} ms",
            flush=True,
        )


def _median(work: Callable[[], object], rounds: int) -> float:
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__)
    parser.add_argument("--device", default="cuda", help="as torch names it (default: cuda)")
    parser.add_argument("--shape", choices=SHAPES, default="1b", help="of the random model (default: 1b)")
    parser.add_argument("--context", type=int, default=1024, help="tokens before the first step (default: 1024)")
    parser.add_argument("--steps", type=int, default=64, help="of a round (default: 64)")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--sizes", type=int, default=len(STREAMS), help=f"how many of the batches {STREAMS}")
    parser.add_argument("--flex", action="store_true", help="flex_attention too: compiling it takes a minute")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
