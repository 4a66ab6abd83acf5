"""Models that transformers computes, behind our engine: their own greedy text, whoever joins, leaves or gives way."""

from __future__ import annotations

import random

import msgspec
import pytest
import torch
from engine_runs import run
from tiny_foreign import FAMILIES, LONGROPE, likeliest, write

from formats.checkpoint.architecture import Unsupported
from formats.checkpoint.checkpoint import open_checkpoint
from microkernel.errors import Internal, Overloaded, PreconditionFailed
from services.inference.engine.engine import Engine, Request
from services.inference.engine.forward import Part
from services.inference.engine.sampler import ResolvedSampling
from services.inference.foreign.decoder import ForeignDecoder
from services.inference.foreign.folder import open_folder
from services.inference.foreign.model import GO_ON

GREEDY = ResolvedSampling(temperature=0.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def decoder_of(folder_of):
    """A family's decoder in float32."""
    decoders = {}

    def decoder(family: str) -> ForeignDecoder:
        if family not in decoders:
            folder = open_folder(folder_of(family), Unsupported("not known"))
            decoders[family] = ForeignDecoder(folder, device=CPU, dtype=torch.float32)
        return decoders[family]

    return decoder


@pytest.fixture
def passes(monkeypatch):
    """Counts the passes of a decoder's model: the number of sequences in each."""

    def count(decoder: ForeignDecoder) -> list[int]:
        rows: list[int] = []
        run = decoder._model.run

        def counted(state, tokens, *rest):
            rows.append(tokens.shape[0])
            return run(state, tokens, *rest)

        monkeypatch.setattr(decoder._model, "run", counted)
        return rows

    return count


def request(number: int, prompt, max_tokens: int = 8, owner: str = "local") -> Request:
    return Request(id=number, prompt=list(prompt), max_tokens=max_tokens, params=GREEDY, owner=owner)


def prompts(count: int, longest: int = 40, seed: int = 0) -> list[list[int]]:
    choose = random.Random(seed)
    return [[choose.randrange(3, 128) for _ in range(choose.randint(1, longest))] for _ in range(count)]


def engine_of(decoder: ForeignDecoder, *, pages: int = 200, **settings) -> Engine:
    return Engine(decoder, max_length=256, cache_bytes=pages * decoder.storage(1).page_bytes, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_several_that_join_and_leave_each_get_what_transformers_writes_for_them_alone(decoder_of, folder_of, family):
    engine = engine_of(decoder_of(family), max_batch=4, token_budget=16)
    wanted = [request(number, prompt, 6 + 2 * number) for number, prompt in enumerate(prompts(6))]
    for one in wanted:
        engine.add(one)
    assert run(engine) == {one.id: likeliest(folder_of(family), one.prompt, one.max_tokens) for one in wanted}


def test_a_known_family_with_a_scaling_that_is_not_computed_here_runs_as_far_as_it_is_steady(tmp_path):
    """Beyond, rotations would depend on the whole text's length, and what is cached would be of other ones."""
    path = write(tmp_path / "scaled", "llama", **LONGROPE)
    with pytest.raises(Unsupported, match="rope scaling 'longrope' is not known here") as refused:
        open_checkpoint(path)
    decoder = ForeignDecoder(open_folder(path, refused.value), device=CPU, dtype=torch.float32)
    engine = engine_of(decoder, token_budget=8)
    assert engine.context_length == 32
    wanted = [request(number, prompt, 8) for number, prompt in enumerate(prompts(4, 24))]
    for one in wanted:
        engine.add(one)
    assert run(engine) == {one.id: likeliest(path, one.prompt, 8) for one in wanted}


@pytest.mark.parametrize("family", ["gemma3_text", "jamba"])
def test_resting_and_cancelled_mates_change_no_answer(decoder_of, folder_of, family):
    wanted = [request(number, prompt, 12) for number, prompt in enumerate(prompts(5, seed=3))]
    engine, tokens, choose = engine_of(decoder_of(family), max_batch=5), {}, random.Random(1)
    for one in wanted:
        engine.add(one)
    for step in range(200):
        for number in range(5):
            engine.hold(number, held=step < 60 and choose.random() < 0.4)
        if step == 6:
            engine.cancel(2)
        for output in engine.step():
            tokens.setdefault(output.id, []).append(output.token)
    assert not engine.running
    for one in wanted:
        expected = likeliest(folder_of(family), one.prompt, 12)
        assert tokens[one.id] == (expected[: len(tokens[2])] if one.id == 2 else expected)


def test_those_that_decode_share_a_pass(decoder_of, passes):
    decoder = decoder_of("gpt2")
    engine = engine_of(decoder)
    for number, length in enumerate((3, 9, 20, 31)):
        engine.add(request(number, [7] * length))
    engine.step()
    rows = passes(decoder)
    engine.step()
    assert rows == [4]


def test_a_long_text_is_not_padded_beside_short_ones(decoder_of, passes):
    decoder = decoder_of("gpt2")
    engine = engine_of(decoder)
    for number, length in enumerate((3, 240, 3, 3)):
        engine.add(request(number, [7] * length))
    engine.step()
    rows = passes(decoder)
    engine.step()
    assert rows == [3, 1]


@pytest.mark.parametrize("family", ["bloom", "llama4_text"])
def test_where_rows_cannot_be_padded_only_equal_lengths_share_a_pass(decoder_of, passes, family):
    decoder = decoder_of(family)
    engine = engine_of(decoder)
    for number, length in enumerate((3, 9, 3, 20)):
        engine.add(request(number, [7] * length))
    engine.step()
    rows = passes(decoder)
    engine.step()
    assert rows == [2, 1, 1]


@pytest.mark.parametrize("family", ["gemma3_text", "qwen3_next"])
def test_a_state_that_leaves_its_batch_is_as_if_it_had_been_alone(decoder_of, family):
    decoder = decoder_of(family)
    storage = decoder.storage(10)
    alone, short, long = ([page] for page in (4, 5, 6))
    tables = [storage.table(pages) for pages in (alone, short, long)]
    decoder.forward(
        storage, [Part([3, 4, 5], 0, tables[0]), Part([3, 4, 5], 0, tables[1]), Part([9] * 20, 0, tables[2])]
    )
    expected = decoder.forward(storage, [Part([7], 3, tables[0])])
    together = decoder.forward(storage, [Part([7], 3, tables[1]), Part([8], 20, tables[2])])
    torch.testing.assert_close(together[:1], expected)
    expected = decoder.forward(storage, [Part([11], 4, tables[0])])
    torch.testing.assert_close(decoder.forward(storage, [Part([11], 4, tables[1])]), expected)


def test_a_recurrent_model_reads_its_prompt_in_one_piece_whatever_the_budget(decoder_of, passes):
    decoder = decoder_of("mamba")
    engine = engine_of(decoder, token_budget=8)
    engine.add(request(1, [7] * 30, 2))
    rows = passes(decoder)
    for _ in range(3):
        assert engine.step() == []
    assert rows == []
    assert len(engine.step()) == 1
    assert rows == [1]


def test_whoever_ends_or_is_cancelled_leaves_neither_state_nor_pages(decoder_of):
    engine = engine_of(decoder_of("gpt2"), pages=50)
    for number, prompt in enumerate(prompts(3)):
        engine.add(request(number, prompt, 5))
    engine.step()
    engine.step()
    assert len(engine._storage) == 3
    assert engine.cancel(1)
    assert len(engine._storage) == 2
    run(engine)
    assert len(engine._storage) == 0
    assert engine.pages.free == 50


def test_who_gives_way_goes_on_with_the_same_text(decoder_of, folder_of):
    engine = engine_of(decoder_of("gemma3_text"), pages=7)
    wanted = [request(number, prompt, 40) for number, prompt in enumerate(prompts(3, 16, seed=5))]
    for one in wanted:
        engine.add(one)
    most = 0
    tokens: dict[int, list[int]] = {}
    while not engine.idle:
        for output in engine.step():
            tokens.setdefault(output.id, []).append(output.token)
        most = max(most, engine.running)
        assert len(engine._storage) == engine.running
    assert most > 1
    assert tokens == {one.id: likeliest(folder_of("gemma3_text"), one.prompt, 40) for one in wanted}


def test_a_quota_counts_what_an_owner_holds(decoder_of):
    engine = engine_of(decoder_of("gpt2"))
    engine.set_quota("small", 2)
    engine.add(request(1, [7] * 60, owner="small"))
    [output] = engine.step()
    assert isinstance(output.error, Overloaded)
    assert "of which 'small' may have 2" in str(output.error)


def test_no_prefix_is_found_and_nothing_is_shared(decoder_of):
    engine = engine_of(decoder_of("gpt2"))
    for number in (1, 2):
        engine.add(request(number, [7] * 64))
        run(engine)
    assert engine.pages.hits == 0
    assert engine.pages.cached == 0


def test_what_the_library_raises_ends_the_step_and_the_engine_goes_on(decoder_of, monkeypatch):
    decoder = decoder_of("gpt2")
    engine = engine_of(decoder, max_batch=1)
    engine.add(request(1, [5, 6]))
    engine.add(request(2, [5, 6]))
    with monkeypatch.context() as patch:
        patch.setattr(decoder._model, "run", lambda *_: [].pop())
        [output] = engine.step()
    assert isinstance(output.error, Internal)
    assert "IndexError: pop from empty list" in str(output.error)
    assert list(run(engine)) == [2]


def test_a_sequence_can_be_cut_and_goes_on_as_if_it_had_never_been_longer(decoder_of):
    decoder = decoder_of("gpt2")
    storage = decoder.storage(10)
    first, second = storage.table([4]), storage.table([5])
    decoder.forward(storage, [Part([3, 4, 5, 6, 7, 8], 0, first), Part([3, 4, 5], 0, second)])
    cut, expected = decoder.forward(storage, [Part([9], 3, first), Part([9], 3, second)])
    torch.testing.assert_close(cut, expected)


def test_a_recurrent_sequence_cannot_be_cut_and_says_so(decoder_of):
    decoder = decoder_of("mamba")
    storage = decoder.storage(10)
    decoder.forward(storage, [Part([3, 4, 5, 6], 0, storage.table([4]))])
    with pytest.raises(PreconditionFailed, match="4 tokens of mamba cannot be cut to 2: a recurrent state"):
        decoder.forward(storage, [Part([9], 2, storage.table([4]))])


@pytest.mark.parametrize("family", sorted(GO_ON))
def test_a_recurrent_model_that_reads_in_pieces_reads_the_same(decoder_of, family):
    """With weights that large, those that lose what came before are wrong by a hundredth or more."""
    decoder = decoder_of(family)
    storage = decoder.storage(10)
    tokens = [token for prompt in prompts(4) for token in prompt][:24]
    whole = decoder.forward(storage, [Part(tokens, 0, storage.table([4]), wanted=5)])
    for first, end in ((0, 1), (1, 9)):
        decoder.forward(storage, [Part(tokens[first:end], first, storage.table([5]), wanted=0)])
    pieces = decoder.forward(storage, [Part(tokens[9:], 9, storage.table([5]), wanted=5)])
    assert float((pieces - whole).norm() / whole.norm()) < 1e-5


def test_several_tokens_behind_a_recurrent_state_are_computed_one_by_one(decoder_of):
    decoder = decoder_of("mamba")
    storage = decoder.storage(10)
    whole = decoder.forward(storage, [Part([3, 4, 5, 6, 7], 0, storage.table([4]), wanted=3)])
    decoder.forward(storage, [Part([3, 4], 0, storage.table([5]))])
    behind = decoder.forward(storage, [Part([5, 6, 7], 2, storage.table([5]), wanted=3)])
    assert float((behind - whole).norm() / whole.norm()) < 1e-3  # by another path; a lost state is a hundredth or more


@pytest.mark.parametrize(
    "use",
    [lambda pages: pages.copy(0, 1), lambda pages: pages.read(0), lambda pages: pages.write(0, b"")],
    ids=["copied", "read", "written"],
)
def test_its_pages_cannot_be_used_as_memory(decoder_of, use):
    with pytest.raises(PreconditionFailed, match="states are not in pages"):
        use(decoder_of("gpt2").storage(2))


def test_accounts_are_right_before_and_after_it_is_loaded(decoder_of, folder_of):
    from services.inference.foreign.folder import page_estimate

    for family, heads in (("gpt2", 4), ("gemma3_text", 2)):
        folder, decoder = open_folder(folder_of(family), Unsupported("not known")), decoder_of(family)
        assert folder.config.parameters * 4 == decoder.weight_bytes
        expected = 16 * 2 * folder.config.layers * heads * 8 * 4
        assert page_estimate(folder, 4) == decoder.storage(1).page_bytes == expected


@pytest.mark.parametrize("family", ["gpt2", "jamba"])
def test_several_answers_to_one_prompt_and_restored_contexts_are_computed_each_by_itself(decoder_of, folder_of, family):
    engine = engine_of(decoder_of(family), max_batch=3)
    (prompt,) = prompts(1)
    expected = likeliest(folder_of(family), prompt, 8)
    for number in range(3):
        engine.add(msgspec.structs.replace(request(number, prompt), fork_of=0 if number else None))
    engine.step()
    context = engine.save(0)
    assert context.pages == []
    engine.pause(0, paused=True)
    engine.swap_out(0)
    engine.restore(context, 9)
    engine.pause(0, paused=False)
    found = run(engine)
    assert found[1] == found[2] == expected
    assert expected[1:] == found[0] == found[9]
    assert not engine._storage._states
