"""A gateway with a certificate: encrypted HTTP and websockets, and whose certificate is believed."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import aiohttp
import pytest
import trustme

from microkernel import connect
from microkernel.errors import Invalid, PreconditionFailed, Unauthenticated, Unavailable
from microkernel.root import Root
from microkernel.wire.client import find_trust
from services.gateway.encryption import server_context


class Files:
    """An authority of our own, and a certificate from it."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        issued = authority.issue_cert("127.0.0.1", "localhost")
        self.authority = folder / "authority.pem"
        self.certificate = folder / "certificate.pem"
        self.key = folder / "key.pem"
        authority.cert_pem.write_to_path(self.authority)
        issued.cert_chain_pems[0].write_to_path(self.certificate)
        issued.private_key_pem.write_to_path(self.key)

    @property
    def settings(self) -> dict[str, str]:
        return {"certificate": str(self.certificate), "key": str(self.key)}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def test_the_websocket_is_encrypted_where_the_gateway_has_a_certificate(open_site, files):
    async with open_site(**files.settings) as site:
        assert site.url.startswith("https://")
        async with connect(site.url, token=site.system.token, cafile=files.authority) as system:
            assert system.url.startswith("wss://")
            assert await system.call("inference.list")


async def test_http_is_encrypted_with_tls_1_2_or_later(open_site, files):
    context = ssl.create_default_context(cafile=str(files.authority))
    async with open_site(**files.settings) as site, aiohttp.ClientSession() as http:
        async with http.get(site.url + "/livez", ssl=context) as answer:
            assert answer.status == 200
        port = int(site.url.rpartition(":")[2])
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        assert writer.get_extra_info("ssl_object").version() in {"TLSv1.2", "TLSv1.3"}
        writer.close()
        await writer.wait_closed()


async def test_a_certificate_of_nobody_known_is_not_believed(open_site, files):
    async with open_site(**files.settings) as site:
        with pytest.raises(Unauthenticated, match="is not believed"):
            async with connect(site.url, token=site.system.token):
                pass


async def test_the_nodes_own_certificate_is_believed_by_those_who_have_its_folder(open_site, files, tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    root = Root(folder)
    root.acquire()
    try:
        async with open_site(**files.settings) as site:
            root.write_node(site.url, str(files.certificate))
            async with connect(site.url, token=site.system.token, root=folder) as system:
                assert await system.call("inference.list")
            assert find_trust("wss://127.0.0.1:1/mk", root=folder) is None  # another node
            assert find_trust("ws://127.0.0.1:1/mk", root=folder) is None
    finally:
        root.release()


async def test_who_speaks_no_tls_is_told(open_site, files):
    async with open_site(**files.settings) as site:
        with pytest.raises(Unavailable):
            async with connect(site.url.replace("https", "http"), token=site.system.token):
                pass
    async with open_site() as site:
        with pytest.raises(Unavailable):
            async with connect(site.url.replace("http", "https"), token=site.system.token):
                pass


async def test_files_that_cannot_be_used_are_named(open_site, files, tmp_path):
    other = Files(_folder(tmp_path / "other"))
    with pytest.raises(PreconditionFailed, match="do not fit each other"):
        server_context(str(files.certificate), str(other.key))
    with pytest.raises(PreconditionFailed, match="nowhere"):
        server_context(str(tmp_path / "nowhere.pem"), None)
    with pytest.raises(Invalid, match="without its certificate"):
        server_context(None, str(files.key))
    assert server_context(None, None) is None
    with pytest.raises(PreconditionFailed, match="cannot use the certificates of"):
        async with connect("https://127.0.0.1:1", token="t", cafile=tmp_path / "nowhere.pem"):
            pass


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
