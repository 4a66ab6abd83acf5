"""Steps of fixed shapes: the same logits as the plain ones, from a recording that knows nothing but its inputs.

On a CPU the recording is made by torch's tracer: like a CUDA graph it keeps the operations and the tensors they ran on,
and none of the Python around them.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import weakref

import pytest
import torch
from forward_passes import Lane, in_chunks, lanes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import CPU, VOCABULARY, tiny_decoder, write_gguf
from torch.fx.experimental.proxy_tensor import make_fx

from formats.checkpoint.checkpoint import open_checkpoint
from services.inference.eager.decoder import Decoder, choose_dtype, sampling_device
from services.inference.eager.fixed import MOST_STEPS, CudaGraphs, FixedSteps

TOKENS = [int(token) for token in torch.randint(0, VOCABULARY, (400,), generator=torch.Generator().manual_seed(4))]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
WINDOWS = {"full": {}, "window": {"llama.attention.sliding_window": 20}}


class Recordings:
    """Traces a step once, and replays the trace."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, run):
        self.made += 1
        traced = make_fx(lambda _: run())(torch.zeros(1))
        return lambda: traced(torch.zeros(1))


def recorded(path, **options) -> tuple[Decoder, Recordings]:
    decoder = Decoder(open_checkpoint(path), device=CPU, dtype=torch.float32, fixed=True)
    recordings = Recordings()
    decoder._steps = FixedSteps(decoder, CPU, recorder=recordings, **options)
    return decoder, recordings


@pytest.fixture(scope="module", params=WINDOWS)
def pair(request, tmp_path_factory):
    path = write_gguf(tmp_path_factory.mktemp("fixed") / "tiny.gguf", context=512, metadata=WINDOWS[request.param])
    return tiny_decoder(path), recorded(path)[0]


def decode(decoder: Decoder, lengths: list[int], steps: int, *, storage=None) -> list[torch.Tensor]:
    """Logits of each step, after prompts of these lengths."""
    several = lanes(decoder, len(lengths), length=420)
    for number, (lane, length) in enumerate(zip(several, lengths, strict=True)):
        decoder.forward(lane.storage, [lane.part(TOKENS[number : number + length], 0)])
    return [
        decoder.forward(several[0].storage, [lane.part([TOKENS[lane.length]]) for lane in several])
        for _ in range(steps)
    ]


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(1, 300), min_size=1, max_size=5), st.integers(1, 20))
def test_recorded_steps_give_the_logits_of_plain_ones(pair, lengths, steps):
    plain, fixed = pair
    for ours, expected in zip(decode(fixed, lengths, steps), decode(plain, lengths, steps), strict=True):
        torch.testing.assert_close(ours, expected, **CLOSE)


def test_a_shape_is_recorded_once_and_shapes_are_powers_of_two(tmp_path):
    decoder, recordings = recorded(write_gguf(tmp_path / "tiny.gguf", context=512))
    several = lanes(decoder, 6, length=420)
    storage = several[0].storage
    for lane in several:
        decoder.forward(storage, [lane.part(TOKENS[:249], 0)])
    for count in (1, 2, 3, 4, 5, 6, 3, 1):
        decoder.forward(storage, [lane.part([7]) for lane in several[:count]])
    assert decoder._steps.shapes == [(1, 16), (2, 16), (8, 16), (4, 16), (1, 32)]
    assert recordings.made == 5, "the first sequence has reached its 257th token, and another shape"


def test_rows_that_nobody_needs_change_no_page(tmp_path):
    decoder, _ = recorded(write_gguf(tmp_path / "tiny.gguf"))
    three = lanes(decoder, 3, length=32)
    storage = three[0].storage
    decoder.forward(storage, [lane.part(TOKENS[:20], 0) for lane in three])
    before = [storage.read(page) for page in range(6)]
    decoder.forward(storage, [lane.part([7]) for lane in three])  # one row too many
    changed = [page for page in range(6) if storage.read(page) != before[page]]
    assert changed == [1, 3, 5]


def test_what_is_not_finite_in_a_page_of_nobody_reaches_nobody(tmp_path):
    decoder, _ = recorded(write_gguf(tmp_path / "tiny.gguf"))
    three = lanes(decoder, 3, length=32)
    storage = three[0].storage
    decoder.forward(storage, [lane.part(TOKENS[:20], 0) for lane in three])
    storage._tensors[0][storage.scratch].fill_(torch.nan)
    assert decoder.forward(storage, [lane.part([7]) for lane in three]).isfinite().all()


class Waiting:
    """A stream."""

    def wait_stream(self, other) -> None:
        pass

    def __str__(self) -> str:
        return "the thread's"


class Cuda:
    """The calls of `torch.cuda` that a recording makes, each written down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        names = ("current_stream", "set_stream", "stream", "graph", "graph_pool_handle", "Stream", "CUDAGraph")
        for name in names:
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def current_stream(self):
        return Waiting()

    def Stream(self):  # noqa: N802 - torch's name
        self.done.append("new stream")
        return Waiting()

    def set_stream(self, stream) -> None:
        self.done.append(f"back on {stream}")

    def stream(self, stream):
        return contextlib.nullcontext()

    def graph_pool_handle(self):
        return (0, 1)

    def CUDAGraph(self):  # noqa: N802
        return self

    def replay(self) -> None:
        self.done.append("replay")

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, *, capture_error_mode):
        assert (graph, pool, capture_error_mode) == (self, (0, 1), "thread_local")
        self.done.append("record")
        yield


@pytest.fixture
def cuda(monkeypatch) -> Cuda:
    return Cuda(monkeypatch)


def test_a_graph_is_recorded_after_it_ran_and_replayed_by_one_call(cuda):
    def run() -> torch.Tensor:
        cuda.done.append("run")
        return torch.ones(1)

    record = CudaGraphs()
    replay = record(run)
    assert cuda.done == ["new stream", "run", "run", "record", "run", "back on the thread's"]
    cuda.done.clear()
    assert replay().item() == 1.0
    record(run)
    assert cuda.done[0] == "replay"
    assert "new stream" not in cuda.done


def test_after_a_recording_that_failed_the_thread_has_its_stream_again(cuda):
    def run() -> torch.Tensor:
        if "record" in cuda.done:
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.ones(1)

    with pytest.raises(RuntimeError, match="capturing"):
        CudaGraphs()(run)
    assert cuda.done[-1] == "back on the thread's"


def test_logits_are_the_callers_own(tmp_path):
    decoder, _ = recorded(write_gguf(tmp_path / "tiny.gguf"))
    lane = Lane(decoder, length=64)
    decoder.forward(lane.storage, [lane.part(TOKENS[:5], 0)])
    first = decoder.forward(lane.storage, [lane.part([1])])
    kept = first.clone()
    decoder.forward(lane.storage, [lane.part([2])])
    assert torch.equal(first, kept)


def test_another_storage_and_a_longer_table_of_rotations_are_recorded_anew(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf")
    monkeypatch.setattr("services.inference.eager.decoder.ROTATIONS", 8)
    decoder, recordings = recorded(path)
    whole = in_chunks(tiny_decoder(path), TOKENS[:40])
    for made in (2, 3):
        lane = Lane(decoder, length=64)
        steps = [decoder.forward(lane.storage, [lane.part([token])]) for token in TOKENS[:40]]
        torch.testing.assert_close(torch.cat(steps), whole, **CLOSE)
        assert recordings.made >= made
        monkeypatch.setattr("services.inference.eager.decoder.ROTATIONS", 8)


def test_released_pages_are_zero_and_the_recording_still_writes_them(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    decoder, recordings = recorded(path)
    lane = Lane(decoder, length=64)
    for token in TOKENS[:20]:
        decoder.forward(lane.storage, [lane.part([token])])
    made = recordings.made
    lane.storage.release()
    assert not any(any(lane.storage.read(page)) for page in range(4))
    lane.length = 0
    steps = [decoder.forward(lane.storage, [lane.part([token])]) for token in TOKENS[:20]]
    torch.testing.assert_close(torch.cat(steps), in_chunks(tiny_decoder(path), TOKENS[:20]), **CLOSE)
    assert recordings.made == made


def test_where_nothing_can_be_recorded_the_steps_are_computed_and_it_is_said_once(tmp_path, caplog):
    path = write_gguf(tmp_path / "tiny.gguf")
    decoder = Decoder(open_checkpoint(path), device=CPU, dtype=torch.float32, fixed=True)

    def refuse(run):
        raise RuntimeError("operation not permitted when stream is capturing")

    decoder._steps = FixedSteps(decoder, CPU, recorder=refuse)
    two = lanes(decoder, 2, length=64)
    with caplog.at_level(logging.WARNING):
        one = decoder.forward(two[0].storage, [two[0].part([TOKENS[0]])])
        decoder.forward(two[0].storage, [lane.part([5]) for lane in two])
    torch.testing.assert_close(one, in_chunks(tiny_decoder(path), TOKENS[:1]), **CLOSE)
    assert [record.message for record in caplog.records if "recorded" in record.message] != []
    assert len(caplog.records) == 1


def test_no_more_shapes_are_kept_than_the_limit(tmp_path, monkeypatch):
    assert MOST_STEPS >= 8
    monkeypatch.setattr("services.inference.eager.fixed.MOST_STEPS", 2)
    decoder, _ = recorded(write_gguf(tmp_path / "tiny.gguf"))
    several = lanes(decoder, 8, length=32)
    for count in (1, 2, 4, 1, 8):
        decoder.forward(several[0].storage, [lane.part([3]) for lane in several[:count]])
    assert decoder._steps.shapes == [(1, 16), (8, 16)]


def test_a_decoder_that_is_let_go_takes_its_weights_along_at_once(tmp_path):
    decoder, _ = recorded(write_gguf(tmp_path / "tiny.gguf"))
    lane = Lane(decoder, length=32)
    decoder.forward(lane.storage, [lane.part([1])])
    gone = weakref.ref(decoder._layers[0])
    gc.collect()
    gc.disable()
    try:
        del decoder
        assert gone() is None
    finally:
        gc.enable()


def test_pages_lie_otherwise_on_accelerators_and_hold_the_same_bytes(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf")
    plain = tiny_decoder(path)
    fixed, _ = recorded(path)
    here, there = Lane(plain, length=64), Lane(fixed, length=64)
    plain.forward(here.storage, [here.part(TOKENS[:40], 0)])
    for page in range(3):
        there.storage.write(page, here.storage.read(page))
        assert there.storage.read(page) == here.storage.read(page)
    there.storage.copy(1, 3)
    assert there.storage.read(3) == here.storage.read(1)
    there.storage.clear(3)
    assert not any(there.storage.read(3))
    there.part(TOKENS[:40])
    torch.testing.assert_close(
        fixed.forward(there.storage, [there.part(TOKENS[40:50])]),
        plain.forward(here.storage, [here.part(TOKENS[40:50])]),
        **CLOSE,
    )


@pytest.mark.parametrize("chunk", [7, 16, 50])
@pytest.mark.parametrize("metadata", WINDOWS.values(), ids=WINDOWS)
def test_prompts_in_chunks_give_the_logits_of_plain_ones(tmp_path, metadata, chunk):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "tiny.gguf", metadata=metadata))
    plain = Decoder(checkpoint, device=CPU, dtype=torch.bfloat16)
    fixed = Decoder(checkpoint, device=CPU, dtype=torch.bfloat16, fixed=True)
    limit = 0.06  # a few units in the last of bfloat16's 8 bits
    torch.testing.assert_close(
        in_chunks(fixed, TOKENS[:100], chunk), in_chunks(plain, TOKENS[:100], chunk), atol=limit, rtol=1e-3
    )


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
def test_logits_are_sampled_where_float64_is_known(device):
    assert sampling_device(torch.device(device)).type == ("cuda" if device == "cuda" else "cpu")


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
ACCELERATORS = [
    name
    for name, there in (
        ("cuda", torch.cuda.is_available()),
        ("mps", torch.backends.mps.is_available()),
        ("xpu", torch.xpu.is_available()),
    )
    if there
]


@pytest.mark.gpu
@pytest.mark.skipif(not ACCELERATORS, reason="torch sees no accelerator")
@pytest.mark.parametrize("metadata", WINDOWS.values(), ids=WINDOWS)
def test_an_accelerator_gives_the_logits_of_the_cpu(tmp_path, metadata):
    path = write_gguf(tmp_path / "tiny.gguf", context=512, metadata=metadata)
    expected = decode(tiny_decoder(path), [3, 40, 250], 12)
    for name in ACCELERATORS:
        device = torch.device(name)
        exact = Decoder(open_checkpoint(path), device=device, dtype=torch.float32)
        for ours, right in zip(decode(exact, [3, 40, 250], 12), expected, strict=True):
            torch.testing.assert_close(ours.cpu(), right, atol=2e-3, rtol=1e-2)  # TF32 at the worst
        usual = Decoder(open_checkpoint(path), device=device, dtype=choose_dtype(device))
        for ours, right in zip(decode(usual, [3, 40, 250], 12), expected, strict=True):
            torch.testing.assert_close(ours.cpu(), right, atol=0.1, rtol=0.05)


@pytest.mark.gpu
@needs_cuda
def test_a_replayed_step_waits_for_nothing(tmp_path):
    decoder = Decoder(
        open_checkpoint(write_gguf(tmp_path / "tiny.gguf")), device=torch.device("cuda"), dtype=torch.bfloat16
    )
    two = lanes(decoder, 2, length=64)
    for _ in range(3):
        decoder.forward(two[0].storage, [lane.part([3]) for lane in two])
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoder.forward(two[0].storage, [lane.part([3]) for lane in two])
    finally:
        torch.cuda.set_sync_debug_mode("default")
