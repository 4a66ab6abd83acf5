"""Data sets, from files to batches: prepared once, the same wherever they are opened, and never of a damaged file."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import resource
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from chat_templates import with_marks
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_level

from formats.checkpoint.checkpoint import open_checkpoint
from formats.text.template import encode_prompt, open_template
from formats.text.tokenizer import open_tokenizer
from microkernel.errors import DataLoss, Invalid, NotFound, PreconditionFailed
from services.training.batch import NOT_LEARNED, Batch
from services.training.config import DataConfig
from services.training.data import encoding, preparation, progress
from services.training.data.dataset import PADDING, Dataset
from services.training.data.plan import shards_of
from services.training.data.preparation import Prepared, prepare
from services.training.data.progress import Progress
from services.training.data.records import ChatTurn
from services.training.data.sources import Source

SOURCE = with_marks(byte_level(), "chatml")
TOKENIZER = open_tokenizer(SOURCE)


def lines(path: Path, records: Iterable[Any]) -> Source:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Source(path, f"data/{path.name}")


def texts(count: int, first: int = 0) -> list[dict[str, str]]:
    return [{"text": f"{number} " + "hello " * (number * 7 % 23)} for number in range(first, first + count)]


def prepared(tmp_path: Path, *files: Source, evaluation: Iterable[Source] = (), report=None, **chosen) -> Prepared:
    config = DataConfig(train=("x",), **{"length": 64, **chosen})
    return prepare(files, list(evaluation), SOURCE, config, tmp_path / "cache", report)


def opened(tmp_path: Path, *files: Source, seed: int = 0, **chosen) -> Dataset:
    found = prepared(tmp_path, *files, **chosen)
    return Dataset(found, found.length, seed)


def documents(batch: Batch) -> list[str]:
    """The documents of a batch, as text with the token that is learned last."""
    found = []
    for tokens, targets, numbers in zip(batch.tokens, batch.targets, batch.documents, strict=True):
        for number in np.unique(numbers):
            inside = numbers == number
            if (targets[inside] != NOT_LEARNED).any():
                ids = [*tokens[inside].tolist(), int(targets[inside][-1])]
                found.append(TOKENIZER.decode(ids, skip_special=False))
    return found


def epoch(dataset: Dataset, rows: int = 4) -> list[Batch]:
    return [dataset.batch(step, 0, rows, 1) for step in range(dataset.steps_per_epoch(rows))]


def test_an_epoch_has_every_document_once(tmp_path):
    dataset = opened(tmp_path, lines(tmp_path / "a.jsonl", texts(200)), evaluation_part=0.0, length=256)
    found = [text for step in range(dataset.rows) for text in documents(dataset.batch(step, 0, 1, 1))]
    assert sorted(found) == sorted(record["text"] + "</s>" for record in texts(200))


def test_a_batch_has_what_its_rows_have_whatever_shard_it_is(tmp_path):
    dataset = opened(tmp_path, lines(tmp_path / "a.jsonl", texts(300)))
    whole = dataset.batch(3, 0, 12, 1)
    parts = [dataset.batch(3, shard, 12, 4) for rank in range(3) for shard in shards_of(rank, 3, 4)]
    for name in Batch._fields:
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
        assert getattr(whole, name).dtype == np.int64
        assert getattr(whole, name).shape == (12, 64)


def test_a_target_is_the_token_that_follows_in_the_document_also_over_a_cut(tmp_path):
    text = "hello abc " * 60
    dataset = opened(tmp_path, lines(tmp_path / "a.jsonl", [{"text": text}]), evaluation_part=0.0, length=32)
    ids = [*TOKENIZER.encode(text, add_bos=False, parse_special=False), TOKENIZER.special_tokens["</s>"]]
    pairs = [
        (int(token), int(target))
        for batch in epoch(dataset, 1)
        for token, target in zip(batch.tokens[0], batch.targets[0], strict=True)
        if target != NOT_LEARNED
    ]
    assert sorted(pairs) == sorted(itertools.pairwise(ids))


def test_positions_and_documents_begin_anew_in_each_document_of_a_row(tmp_path):
    dataset = opened(tmp_path, lines(tmp_path / "a.jsonl", texts(100)))
    for batch in epoch(dataset):
        for positions, numbers in zip(batch.positions, batch.documents, strict=True):
            assert numbers[0] == 0
            assert set(np.diff(numbers)) <= {0, 1}
            for number in np.unique(numbers):
                inside = positions[numbers == number]
                assert inside.tolist() == list(range(len(inside)))


def test_padding_is_a_document_of_its_own_from_which_nothing_is_learned(tmp_path):
    dataset = opened(tmp_path, lines(tmp_path / "a.jsonl", [{"text": "abc"}]), evaluation_part=0.0)
    batch = dataset.batch(0, 0, 1, 1)
    assert batch.documents[0].tolist() == [0] * 3 + [1] * 61
    assert set(batch.tokens[0, 3:].tolist()) == {PADDING}
    assert batch.targets[0, 3:].tolist() == [NOT_LEARNED] * 61


CHAT = {"messages": [{"role": "user", "content": "hello?"}, {"role": "assistant", "content": "hello!"}]}


def test_of_chats_only_answers_are_targets(tmp_path):
    dataset = opened(tmp_path, lines(tmp_path / "a.jsonl", [CHAT]), evaluation_part=0.0, length=128)
    batch = dataset.batch(0, 0, 1, 1)
    learned = batch.targets[0][batch.targets[0] != NOT_LEARNED].tolist()
    assert TOKENIZER.decode(learned, skip_special=False) == "hello!<|im_end|>"


def test_a_row_is_what_the_model_is_asked_and_answers_with(tmp_path):
    dataset = opened(tmp_path, lines(tmp_path / "a.jsonl", [CHAT]), evaluation_part=0.0, length=128)
    asked = encode_prompt(TOKENIZER, open_template(TOKENIZER).render([ChatTurn("user", "hello?")]))
    batch = dataset.batch(0, 0, 1, 1)
    assert batch.tokens[0, : len(asked)].tolist() == asked
    assert (batch.targets[0] != NOT_LEARNED).argmax() == len(asked) - 1


def test_the_same_files_are_prepared_once(tmp_path, monkeypatch):
    file = lines(tmp_path / "a.jsonl", [*texts(50), {"text": 5}])
    first = prepared(tmp_path, file)
    monkeypatch.setattr(preparation, "open_tokenizer", lambda _: pytest.fail("it was encoded again"))
    moved = file.path.rename(tmp_path / "b")
    again = prepared(tmp_path, Source(moved, "elsewhere/c.jsonl"))
    assert again.named[0].file == "elsewhere/c.jsonl"
    assert msgspec.structs.replace(again, named=first.named, sources=first.sources) == first


@pytest.mark.parametrize("change", ["content", "kind", "tokenizer", "evaluation_part", "evaluation", "name"])
def test_what_changes_the_tokens_changes_the_key(tmp_path, change):
    file, other = lines(tmp_path / "a.jsonl", texts(50)), lines(tmp_path / "b.jsonl", texts(1))
    before = prepared(tmp_path, file, evaluation_part=0.5)
    more: dict[str, Any] = {"evaluation_part": 0.5}
    source = SOURCE
    match change:
        case "content":
            lines(file.path, texts(51))
        case "kind":
            more["kind"] = "text"
        case "tokenizer":
            source = byte_level(words=("he",))
        case "evaluation_part":
            more["evaluation_part"] = 0.4
        case "evaluation":
            pass
        case "name":
            file = file._replace(name="a.json")
    evaluation = [other] if change == "evaluation" else []
    after = prepare([file], evaluation, source, DataConfig(train=("x",), length=64, **more), tmp_path / "cache")
    assert after.key != before.key


def held(found: Prepared) -> set[str]:
    dataset = Dataset(found, 512, 0)
    return {text for index in range(dataset.evaluation_rows) for text in documents(dataset.evaluation(index))}


def test_what_is_held_out_hangs_on_each_document_alone(tmp_path):
    file, more = lines(tmp_path / "a.jsonl", texts(300)), lines(tmp_path / "b.jsonl", texts(300, first=300))
    doubled = lines(tmp_path / "c.jsonl", texts(300) * 2)
    alone = held(prepared(tmp_path, file, evaluation_part=0.2))
    assert 30 < len(alone) < 100
    assert held(prepared(tmp_path, more, file, evaluation_part=0.2)) >= alone
    assert held(prepared(tmp_path, doubled, evaluation_part=0.2)) == alone
    assert held(prepared(tmp_path, file, evaluation_part=0.4)) >= alone


def test_a_document_that_is_there_twice_is_on_one_side(tmp_path):
    dataset = opened(tmp_path, lines(tmp_path / "a.jsonl", texts(200) * 2), evaluation_part=0.3, length=256)
    trained = {text for batch in epoch(dataset, 1) for text in documents(batch)}
    kept = {text for index in range(dataset.evaluation_rows) for text in documents(dataset.evaluation(index))}
    assert trained & kept == set()
    assert len(trained | kept) == 200


def test_files_for_evaluation_are_all_that_is_held_out(tmp_path):
    train, test = lines(tmp_path / "a.jsonl", texts(100)), lines(tmp_path / "b.jsonl", texts(20, first=500))
    found = prepared(tmp_path, train, evaluation=[test], evaluation_part=0.5)
    assert (found.train.documents, found.held.documents) == (100, 20)
    assert held(found) == {record["text"] + "</s>" for record in texts(20, first=500)}


def test_evaluation_has_each_row_once_and_ends(tmp_path):
    found = prepared(tmp_path, lines(tmp_path / "a.jsonl", texts(300)), evaluation_part=0.3)
    dataset = Dataset(found, 64, 0)
    one_by_one = [dataset.evaluation(index).tokens for index in range(dataset.evaluation_rows)]
    together = [dataset.evaluation(index, 5).tokens for index in range(-(-dataset.evaluation_rows // 5))]
    assert np.array_equal(np.concatenate(one_by_one), np.concatenate(together))
    with pytest.raises(Invalid, match="held out"):
        dataset.evaluation(dataset.evaluation_rows)


def test_the_kind_is_what_the_first_record_is(tmp_path):
    file = lines(tmp_path / "a.jsonl", [5, {"title": "x"}, CHAT, *texts(3), CHAT])
    found = prepared(tmp_path, file, evaluation_part=0.0)
    assert (found.kind, found.train.documents, found.bad) == ("chat", 2, 5)


def test_bad_records_are_named_and_left_out_up_to_their_limit(tmp_path):
    file = lines(tmp_path / "a.jsonl", [*texts(3), {"text": 5}, {"text": ""}])
    found = prepared(tmp_path, file, bad_records=2, evaluation_part=0.0)
    assert [str(bad) for bad in found.named] == [
        "data/a.jsonl, line 4 has a number as text, not a string",
        "data/a.jsonl, line 5 has an empty text",
    ]
    assert found.train.documents == 3


@pytest.mark.parametrize("before", [False, True], ids=["new", "prepared before"])
def test_one_bad_record_too_many_is_refused_with_the_first_by_name(tmp_path, before):
    file = lines(tmp_path / "a.jsonl", [*texts(3), {"text": 5}, {"text": ""}])
    if before:
        prepared(tmp_path, file)
    with pytest.raises(Invalid, match=r"allows 1: data/a\.jsonl, line 4 has a number") as refused:
        prepared(tmp_path, file, bad_records=1)
    assert refused.value.field == "data.bad_records"
    assert before or list((tmp_path / "cache").iterdir()) == []


def test_a_chat_that_the_template_refuses_is_a_bad_record(tmp_path):
    source = byte_level(chat_template="{{ raise_exception('never') }}")
    bad = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "a"}]}
    file = lines(tmp_path / "a.jsonl", [bad, bad])
    with pytest.raises(Invalid, match=r"nothing to train on: data/a\.jsonl, line 1 .*refuses: never"):
        prepare([file], [], source, DataConfig(train=("x",)), tmp_path / "cache")


def test_where_all_is_held_out_it_is_said(tmp_path):
    with pytest.raises(Invalid, match="all 3 documents are held out"):
        prepared(tmp_path, lines(tmp_path / "a.jsonl", texts(3)), evaluation_part=0.999999)


def test_files_of_several_forms_are_one_data_set(tmp_path):
    (tmp_path / "b.md").write_text("# hello\n")
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(json.dumps(texts(5)).encode()))
    files = [
        lines(tmp_path / "a.jsonl", texts(3, 50)),
        *(Source(tmp_path / name, name) for name in ("b.md", "c.json.gz")),
    ]
    assert prepared(tmp_path, *files, evaluation_part=0.0).train.documents == 9


def test_records_are_written_in_their_order_whatever_the_threads_do(tmp_path, monkeypatch):
    file = lines(tmp_path / "a.jsonl", texts(500))
    config = DataConfig(train=("x",))
    digests = {
        prepare([file], [], SOURCE, config, tmp_path / f"{threads}", threads=threads).digest for threads in (1, 7)
    }
    monkeypatch.setattr(encoding, "RECORDS", 3)
    digests.add(prepare([file], [], SOURCE, config, tmp_path / "few", threads=2).digest)
    assert len(digests) == 1


@pytest.mark.parametrize("change", ["append", "rewrite", "same size and time", "remove"])
def test_a_file_that_changes_while_it_is_read_is_named(tmp_path, monkeypatch, change):
    file = lines(tmp_path / "a.jsonl", texts(50))
    read = encoding.read_entries

    def changing(path: Path, *more: Any) -> Iterable[Any]:
        yield from read(path, *more)
        found = path.stat()
        match change:
            case "append":
                path.write_text(path.read_text() + "x")
            case "rewrite":
                path.write_text("{")
            case "same size and time":
                path.write_text(path.read_text().replace("7", "8"))
                os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
            case "remove":
                path.unlink()

    monkeypatch.setattr(encoding, "read_entries", changing)
    with pytest.raises((PreconditionFailed, NotFound), match=r"data/a\.jsonl"):
        prepared(tmp_path, file)
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_change_broke_is_not_blamed_on_the_records(tmp_path, monkeypatch):
    file = lines(tmp_path / "a.jsonl", texts(50))

    def broken(path: Path, *_: Any) -> Iterable[Any]:
        path.write_text("{")
        raise Invalid("it is not JSON")

    monkeypatch.setattr(encoding, "read_entries", broken)
    with pytest.raises(PreconditionFailed, match="changed while") as changed:
        prepared(tmp_path, file)
    assert changed.value.causes == ("Invalid: it is not JSON",)


def test_a_full_disk_is_said_and_nothing_counts_as_prepared(tmp_path):
    file = lines(tmp_path / "a.jsonl", texts(3000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(PreconditionFailed, match="cannot be written") as full:
            prepared(tmp_path, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert full.value.remedy == "free space on its disk"
    assert list((tmp_path / "cache").iterdir()) == []
    assert prepared(tmp_path, file).train.documents


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(NotFound, match=r"data/a\.jsonl cannot be read"):
        prepared(tmp_path, Source(tmp_path / "a", "data/a.jsonl"))


@pytest.mark.parametrize("name", ["train.tokens", "train.learned", "train.ends", "held.tokens", "manifest"])
def test_a_prepared_file_that_was_cut_is_found_when_it_is_opened(tmp_path, name):
    found = prepared(tmp_path, lines(tmp_path / "a.jsonl", texts(200)), evaluation_part=0.3)
    path = Path(found.folder, name)
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataLoss) as lost:
        Dataset(found, 64, 0)
    assert found.folder in str(lost.value)


@pytest.mark.parametrize("name", ["train.tokens", "train.learned"])
def test_a_prepared_file_with_a_flipped_bit_gives_no_batch(tmp_path, name):
    found = prepared(tmp_path, lines(tmp_path / "a.jsonl", texts(200)))
    path = Path(found.folder, name)
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    dataset = Dataset(found, 64, 0)
    with pytest.raises(DataLoss, match=f"{name} is damaged"):
        epoch(dataset)
    with pytest.raises(DataLoss, match=f"{name} is damaged"):
        dataset.verify()


def test_prepared_data_that_are_gone_or_others_are_refused(tmp_path):
    found = prepared(tmp_path, lines(tmp_path / "a.jsonl", texts(20)))
    with pytest.raises(DataLoss, match="not those that were asked for"):
        Dataset(msgspec.structs.replace(found, digest="0"), 64, 0)
    with pytest.raises(DataLoss, match="are not there"):
        Dataset(msgspec.structs.replace(found, folder=f"{found.folder}0"), 64, 0)


def test_what_is_prepared_can_be_sent(tmp_path):
    found = prepared(tmp_path, lines(tmp_path / "a.jsonl", [*texts(20), 5]))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Prepared) == found


def test_what_was_counted_is_what_the_rows_have(tmp_path):
    found = prepared(tmp_path, lines(tmp_path / "a.jsonl", texts(300)))
    dataset = Dataset(found, 64, 0)
    assert dataset.rows == found.train.rows
    batches = [dataset.batch(step, 0, 1, 1) for step in range(dataset.rows)]
    assert sum(int((batch.targets != NOT_LEARNED).sum()) for batch in batches) == found.train.learned


def test_rows_that_are_skipped_are_gone_from_there_on_and_before_all_is_as_it_was(tmp_path):
    found = prepared(tmp_path, lines(tmp_path / "a.jsonl", texts(300)))
    dataset = Dataset(found, 64, 5)
    before = [dataset.batch(step, 0, 4, 1).tokens for step in range(10)]
    bad = dataset.rows_of(6, 4)
    left_out = dataset.skip(bad.tolist(), 6, 4)
    assert all(np.array_equal(dataset.batch(step, 0, 4, 1).tokens, before[step]) for step in range(6))
    assert np.array_equal(dataset.batch(6, 0, 4, 1).tokens, before[7])
    later = {row for step in range(6, 3 * dataset.steps_per_epoch(4)) for row in dataset.rows_of(step, 4).tolist()}
    assert later == set(range(dataset.rows)) - set(bad.tolist())
    again = Dataset(found, 64, 5, left_out)
    assert np.array_equal(again.batch(40, 0, 4, 1).tokens, dataset.batch(40, 0, 4, 1).tokens)


def test_progress_ends_at_its_total_and_is_not_told_for_every_record(tmp_path, monkeypatch):
    told: list[Progress] = []
    found = prepared(tmp_path, lines(tmp_path / "a.jsonl", texts(2000)), report=told.append)
    assert told[-1].done == told[-1].total > 0
    assert told[-1].documents == found.train.documents + found.held.documents
    assert len(told) < 100
    monkeypatch.setattr(progress, "BETWEEN", 0.0)
    told.clear()
    prepared(tmp_path, lines(tmp_path / "b.jsonl", texts(500)), report=told.append)
    assert [one.done for one in told] == sorted(one.done for one in told)
    assert len(told) > 100


def test_a_report_that_raises_ends_the_preparation(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "BETWEEN", 0.0)

    def stop(told: Progress) -> None:
        if told.documents:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path, lines(tmp_path / "a.jsonl", texts(2000)), report=stop)
    assert list((tmp_path / "cache").iterdir()) == []


VALUES = st.recursive(
    st.sampled_from([None, 5, "", "a b", "<|im_end|>", "user", "assistant", "human", "gpt"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["text", "messages", "role", "content", "prompt", "completion", "from"]), inner),
    max_leaves=8,
)  # fmt: skip


@given(records=st.lists(VALUES | st.just(CHAT), max_size=8), broken=st.binary(max_size=20))
@settings(max_examples=60, deadline=None)
def test_any_lines_are_prepared_or_refused_and_each_is_a_document_or_named(
    tmp_path_factory, records: Any, broken: bytes
):
    folder = tmp_path_factory.mktemp("any")
    file = lines(folder / "a.jsonl", [*records, CHAT])
    with file.path.open("ab") as more:
        more.write(broken)
    found = prepared(folder, file, kind="chat", evaluation_part=0.0)
    assert found.train.documents + found.bad >= len(records) + 1
    assert len(found.named) == found.bad


@pytest.mark.model
def test_chats_for_the_default_model_are_learned_by_what_its_assistant_says(tmp_path, default_model):
    source = open_checkpoint(default_model).tokenizer_source
    tokenizer = open_tokenizer(source)
    records = [
        {"messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"How much is {number} and one?"},
            {"role": "assistant", "content": f"It is {number + 1}."},
            {"role": "user", "content": "And one more?"},
            {"role": "assistant", "content": f"\nThen {number + 2}."},
        ]}
        for number in range(100)
    ]  # fmt: skip
    config = DataConfig(train=("x",), evaluation_part=0.1, length=256)
    found = prepare([lines(tmp_path / "a.jsonl", records)], [], source, config, tmp_path / "cache")
    dataset = Dataset(found, 256, 0)
    said = []
    for step in range(dataset.rows):
        batch = dataset.batch(step, 0, 1, 1)
        targets = batch.targets[0]
        said += tokenizer.decode(targets[targets != NOT_LEARNED].tolist(), skip_special=False).split("<|im_end|>")[:-1]
    assert len(said) == 2 * sum(text.startswith("It is ") for text in said)
    assert {text.strip(" 0123456789.\n") for text in said} == {"It is", "Then"}
