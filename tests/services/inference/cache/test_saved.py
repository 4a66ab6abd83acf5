"""Saved pages: what was written is found again, whole or not at all, and the folder keeps to its limit."""

from __future__ import annotations

import os

import pytest

from microkernel.errors import Invalid
from services.inference.cache.saved import MAGIC, SavedPages

FILE = len(MAGIC) + 4  # bytes of a file beside the page


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def content(number: int, size: int = 100) -> bytes:
    return bytes([number % 251]) * size


@pytest.fixture
def saved(tmp_path):
    pages = SavedPages(tmp_path / "pages", 1 << 20)
    yield pages
    pages.close()


def take_all(loading) -> list[bytes]:
    contents = []
    while not loading.done:
        contents += loading.take(wait=10.0)
    return contents


def fill(pages: SavedPages, *numbers: int, size: int = 100) -> None:
    for number in numbers:
        assert pages.save(key(number), content(number, size))
    pages.flush()


def test_what_was_saved_is_loaded_in_order(saved):
    fill(saved, *range(30))
    assert saved.find([key(number) for number in range(40)]) == 30
    assert take_all(saved.load([key(number) for number in range(30)])) == [content(number) for number in range(30)]


def test_a_gap_ends_what_is_found(saved):
    fill(saved, 0, 1, 3)
    assert saved.find([key(number) for number in range(4)]) == 2
    assert saved.find([key(9)]) == 0


def test_another_process_finds_what_was_saved(saved, tmp_path):
    fill(saved, 1, 2)
    again = SavedPages(tmp_path / "pages", 1 << 20)
    assert again.find([key(1), key(2)]) == 2
    assert again.nbytes == saved.nbytes == 2 * (FILE + 100)
    assert take_all(again.load([key(2)])) == [content(2)]
    again.close()


def test_a_page_is_written_once(saved):
    assert saved.save(key(1), content(1))
    assert saved.has(key(1))
    assert not saved.save(key(1), content(1))
    saved.flush()
    assert not saved.save(key(1), content(1))
    assert saved.count == 1


def test_over_the_limit_what_was_used_longest_ago_goes(tmp_path):
    pages = SavedPages(tmp_path, 3 * (FILE + 100))
    fill(pages, 1, 2, 3)
    take_all(pages.load([key(1)]))
    fill(pages, 4)
    assert [pages.has(key(number)) for number in (1, 2, 3, 4)] == [True, False, True, True]
    assert sum(entry.stat().st_size for entry in tmp_path.iterdir()) == pages.nbytes <= 3 * (FILE + 100)
    pages.close()


def test_a_smaller_limit_is_kept_from_the_start(saved, tmp_path):
    fill(saved, 1, 2, 3)
    for number in (1, 2, 3):
        os.utime(tmp_path / "pages" / key(number).hex(), (number, number))
    pages = SavedPages(tmp_path / "pages", 2 * (FILE + 100))
    assert [pages.has(key(number)) for number in (1, 2, 3)] == [False, True, True]
    pages.close()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[:-1], id="cut off"),
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:-1] + b"!", id="a byte changed"),
        pytest.param(lambda data: b"another!" + data[8:], id="of another kind"),
        pytest.param(lambda data: data + b"more", id="too long"),
    ],
)
def test_a_damaged_page_is_not_given_and_not_found_again(saved, tmp_path, damage):
    fill(saved, 1, 2, 3)
    path = tmp_path / "pages" / key(2).hex()
    path.write_bytes(damage(path.read_bytes()))
    assert take_all(saved.load([key(1), key(2), key(3)])) == [content(1)]
    assert not saved.has(key(2))
    assert not path.exists()


def test_a_page_that_was_deleted_meanwhile_ends_the_loading(saved, tmp_path):
    fill(saved, 1, 2)
    (tmp_path / "pages" / key(1).hex()).unlink()
    assert take_all(saved.load([key(1), key(2)])) == []
    assert saved.find([key(1)]) == 0


def test_what_a_crash_left_half_written_is_removed(tmp_path):
    (tmp_path / f"{key(1).hex()}.new").write_bytes(b"half")
    pages = SavedPages(tmp_path, 1 << 20)
    assert list(tmp_path.iterdir()) == []
    assert pages.count == 0
    pages.close()


def test_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "readme").write_text("mine")
    (tmp_path / ("x" * 64)).write_text("mine too")
    pages = SavedPages(tmp_path, 0)
    assert pages.count == 0
    assert len(list(tmp_path.iterdir())) == 2
    pages.close()


def test_a_folder_that_cannot_be_used_saves_nothing_and_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    pages = SavedPages(tmp_path / "file" / "pages", 1 << 20)
    pages.save(key(1), content(1))
    pages.flush()
    assert pages.count == 0
    assert "file" in pages.failed
    pages.close()


def test_what_comes_faster_than_the_disk_takes_it_is_not_saved(saved, monkeypatch):
    monkeypatch.setattr("services.inference.cache.saved.WAITING", 250)
    assert not saved.save(key(1), content(1, 251))
    fill(saved, 2)


def test_a_limit_of_nothing_saves_nothing(tmp_path):
    pages = SavedPages(tmp_path, 0)
    assert not pages.save(key(1), content(1))
    pages.close()
    with pytest.raises(Invalid, match="-1"):
        SavedPages(tmp_path, -1)


def test_cancelling_a_load_reads_no_more(saved):
    fill(saved, *range(20))
    loading = saved.load([key(number) for number in range(20)])
    loading.cancel()
    assert loading.done
    assert loading.take(wait=1.0) == []
