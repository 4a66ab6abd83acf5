"""The program that talks to the Hugging Face hub for `hub.py`; run by its path, so it imports nothing of ours.

Its only argument is an order in JSON: list the files of a repository, or fetch some. It answers in lines of JSON, and
ends at once when its standard input closes: then nobody waits for it any more.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined] # documented

CHUNK = 1 << 20
TRIES = 5  # in a row without a byte
REPORT_EVERY = 4 << 20  # bytes


class TooLongError(Exception):
    """The server sends more of a file than it listed."""


def main() -> int:
    """Carry the order out; exit code 1 after an error, which was said in a line of its own."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    order = json.loads(sys.argv[1])
    transport: Any = importlib.import_module(type(get_session()).__module__.partition(".")[0]).TransportError
    try:
        if order["task"] == "list":
            _list(order)
        else:
            _fetch(order, transport)
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        kind = "denied" if isinstance(error, GatedRepoError) else "absent"
        return _fail(kind, error)
    except HfHubHTTPError as error:
        status = error.response.status_code
        return _fail("absent" if status == 404 else "denied" if status in (401, 403) else "unreachable", error)
    except TooLongError as error:
        return _fail("damaged", error)
    except (OfflineModeIsEnabled, transport) as error:
        return _fail("unreachable", error)
    except OSError as error:
        return _fail("full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "disk", error)
    return 0


def _list(order: dict[str, Any]) -> None:
    api = HfApi(endpoint=order["endpoint"])
    model = api.model_info(order["repository"], revision=order["revision"], files_metadata=True, timeout=30)
    files = [
        {
            "name": file.rfilename,
            "size": file.size or 0,
            "blob": file.blob_id or "",
            "sha256": file.lfs.sha256 if file.lfs else None,
        }
        for file in model.siblings or []
    ]
    license_tag = next((tag for tag in model.tags or [] if tag.startswith("license:")), None)
    license_name = license_tag.removeprefix("license:") if license_tag else None
    _say(listing={"commit": model.sha or "main", "files": files, "license": license_name})


def _fetch(order: dict[str, Any], transport: Any) -> None:
    done = 0
    for file in order["files"]:
        url = hf_hub_url(order["repository"], file["name"], revision=order["commit"], endpoint=order["endpoint"])
        _fetch_file(url, Path(file["part"]), file["size"], done, transport)
        done += file["size"]
        _say(done=done)


def _fetch_file(url: str, part: Path, size: int, done: int, transport: Any) -> None:
    """Go on from the bytes that are there, also after the connection broke, until the file has its size."""
    tries = TRIES
    with part.open("ab", buffering=0) as target:
        if target.tell() > size:
            target.truncate(0)
        while (before := os.fstat(target.fileno()).st_size) < size:
            try:
                _fetch_rest(url, target, before, size, done)
                ended: Exception | None = None
            except transport as error:
                ended = error
            tries = TRIES if os.fstat(target.fileno()).st_size > before else tries - 1
            if tries == 0:
                raise ended or ConnectionError(f"{url} ends before byte {size}")
            if ended is not None:
                time.sleep(0.5)
        os.fsync(target.fileno())


def _fetch_rest(url: str, target: Any, start: int, size: int, done: int) -> None:
    headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-"}
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
        hf_raise_for_status(response)
        if response.status_code != 206 and start:
            target.truncate(0)  # a server that gives no ranges starts over
            start = 0
        said = 0
        for chunk in response.iter_bytes(chunk_size=CHUNK):
            if start + len(chunk) > size:
                target.truncate(0)
                raise TooLongError(f"{url} is longer than the {size} bytes that are listed")
            view = memoryview(chunk)
            while view:
                view = view[target.write(view) :]
            start += len(chunk)
            if start - said >= REPORT_EVERY:
                _say(done=done + start)
                said = start


def _say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _fail(kind: str, error: Exception) -> int:
    _say(error=str(error) or type(error).__name__, kind=kind)
    return 1


def _end_with_parent() -> None:
    os.read(0, 1)  # not through sys.stdin: its lock, held here, would make the interpreter's own end fail
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
