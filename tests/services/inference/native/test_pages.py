"""The kernels' pages: memory that is given back is really gone, and a page is zero when it is used again."""

from __future__ import annotations

import pytest
from tiny_models import write_gguf

from formats.checkpoint.checkpoint import open_checkpoint
from services.inference.cache.host_memory import ELASTIC
from services.inference.native.pages import HostPages


@pytest.fixture
def pages(tmp_path) -> HostPages:
    return HostPages(open_checkpoint(write_gguf(tmp_path / "tiny.gguf")).config, 64)


@pytest.mark.skipif(not ELASTIC, reason="only Linux takes parts of a mapping back")
def test_a_page_whose_memory_was_given_back_is_zero_and_the_others_are_whole(pages):
    content = bytes(range(256)) * (pages.page_bytes // 256)
    for page in range(64):
        pages.write(page, content)
    pages.give_back([3, 5, 4, 63])
    assert [page for page in range(64) if pages.read(page) != content] == [3, 4, 5, 63]
    assert not any(pages.read(4))


def test_all_memory_can_be_given_back_and_pages_are_used_again(pages):
    pages.write(1, b"\x07" * pages.page_bytes)
    pages.release()
    assert not any(pages.read(1))
    pages.write(1, b"\x09" * pages.page_bytes)
    assert pages.read(1)[0] == 9
