"""Nodes find each other, call each other, and notice who has gone."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import msgspec
import pytest
from answering import Answers
from clustered import clustered
from wire_node import Maths

from microkernel.capability import Rights
from microkernel.errors import (
    AlreadyExists,
    Denied,
    MicrokernelError,
    PreconditionFailed,
    Unauthenticated,
    Unavailable,
)
from microkernel.message import Call
from microkernel.service import Placement, Service, handles
from microkernel.testing import TestKernel
from microkernel.wire.node_link import NodeLink
from microkernel.wire.trust import Expected
from services.cluster.certificates.join_secret import read_join_secret
from services.cluster.certificates.join_token import parse_join_token
from services.cluster.joining import place_of
from services.cluster.membership.actions import Probe
from services.cluster.messages import MemberState, Summary
from services.cluster.passport import Passport


async def test_a_node_alone_is_a_cluster_of_one() -> None:
    async with clustered() as cluster:
        await cluster.found("n1")
        await cluster.all_see("n1")


async def test_a_node_that_joins_is_seen_by_all_and_sees_all() -> None:
    async with clustered() as cluster:
        await cluster.found("n1")
        await cluster.join("n2")
        await cluster.join("n3")
        await cluster.all_see("n1", "n2", "n3")


async def test_what_the_first_node_has_is_called_from_a_node_that_joined() -> None:
    async with clustered() as cluster:
        await cluster.found("n1", Maths)
        second = await cluster.join("n2", Maths)
        await cluster.until("n2", lambda seen: "maths" in seen["n1"].services)
        assert (await second.call("maths.add", a=1, b=2)).total == 3


async def test_a_node_that_leaves_is_gone_at_once() -> None:
    async with clustered() as cluster:
        await cluster.found("n1")
        await cluster.join("n2")
        await cluster.all_see("n1", "n2")
        await cluster.stop("n2")
        seen = await cluster.until("n1", lambda seen: "n2" not in seen or seen["n2"].state != "alive")
        assert seen["n2"].state == "left"


class Waits(Service):
    """Answers when it is told to."""

    name = "waits"
    placement = Placement.NODE

    async def start(self) -> None:
        self.begun, self.released = asyncio.Event(), asyncio.Event()

    @handles
    async def wait(self) -> str:
        self.begun.set()
        await self.released.wait()
        return self.node


async def test_an_answer_that_is_overtaken_by_the_goodbye_of_its_node_still_arrives() -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1")
        second = await cluster.join("n2", Waits)
        await cluster.until("n1", lambda seen: "n2" in seen and "waits" in seen["n2"].services)
        waits = second.kernel.instance("waits").service
        answer = asyncio.create_task(first.call("waits.wait@n2"))
        await waits.begun.wait()
        here, there = (node.kernel.instance("cluster").service for node in (first, second))
        now = asyncio.get_running_loop().time()
        goodbyes = [each.gossip for each in there._membership.leave(now) if isinstance(each, Probe)]
        here._acting.perform(here._membership.heard(goodbyes[0], now))
        assert (await cluster.until("n1", lambda _: True))["n2"].state == "left"
        waits.released.set()
        assert await answer == "n2"


async def test_without_a_join_token_nobody_comes_in() -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1")
        url = (await first.call("cluster.invite")).url
        with pytest.raises(MicrokernelError, match="join token"):
            await cluster._boot("n2", (), {"cluster": {"join": (url,)}}, joins=True)


async def test_a_join_token_lets_a_node_in_and_does_nothing_else() -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1", Maths)
        invitation = await first.call("cluster.invite")
        token = parse_join_token(invitation.token).token
        link = NodeLink(place_of(invitation.url).url, token)
        await link.start()
        try:
            for target in ("maths.add", "cluster.list", "cluster.probe", "kernel.shutdown"):
                with pytest.raises(Denied):
                    await link.forward(target, {}, Call(caller="test"), Any)
        finally:
            await link.aclose()


async def test_a_token_without_the_right_to_join_opens_no_door() -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1")
        made = await first.call("kernel.token_create", user="ana", allow=("maths.*",))
        url = place_of((await first.call("cluster.invite")).url).url
        link = NodeLink(url, made.token)
        with pytest.raises(Unauthenticated):
            await link.start()
        await link.aclose()


@pytest.mark.parametrize("text", ["mknode1.n9.1.not-the-secret-of-this-cluster", "mknode1.", "mknode1.n9.x.y", ""])
async def test_without_the_clusters_secret_a_node_is_nobody(text: str) -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1")
        link = NodeLink(place_of((await first.call("cluster.invite")).url).url, text or "x" * 40)
        with pytest.raises(Unauthenticated):
            await link.start()
        await link.aclose()


async def test_only_root_invites_drains_and_removes() -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1")
        port = first.kernel.port.narrow(caller="session s1", rights=Rights(), user="ana")
        for call, message in (("invite", {}), ("drain", {"node": "n1"}), ("remove", {"node": "n2"}), ("leave", {})):
            with pytest.raises(Denied, match="only root"):
                await port.call(f"cluster.{call}", message)


@pytest.mark.parametrize("method", ["probe", "exchange", "tell", "reach", "renew"])
async def test_what_nodes_say_to_each_other_is_for_nodes_alone(method: str) -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1")
        gossip = {"source": "n9", "incarnation": 1, "life": 1}
        message = {
            "exchange": {"gossip": gossip},
            "reach": {"node": "n1", "timeout": 1.0},
            "renew": {"request": ""},
        }.get(method, gossip)
        with pytest.raises(Denied, match="only another node"):
            await first.call(f"cluster.{method}", message)


async def test_a_node_speaks_in_its_own_name_alone() -> None:
    async with clustered() as cluster:
        await cluster.found("n1")
        second = await cluster.join("n2")
        await cluster.join("n3")
        await cluster.all_see("n1", "n2", "n3")
        service = second.kernel.instance("cluster").service
        lie = msgspec.structs.replace(service._membership.gossip_to("n1"), source="n3", state=MemberState.LEFT)
        for to, message in (("probe", lie), ("tell", lie), ("exchange", Summary(gossip=lie))):
            with pytest.raises(Denied, match="'n2' speaks in the name of 'n3'"):
                await service.call(f"cluster.{to}@n1", message)
        await cluster.all_see("n1", "n2", "n3")


async def test_two_nodes_of_one_name_are_not_let_in() -> None:
    async with clustered() as cluster:
        await cluster.found("n1")
        await cluster.join("n2")
        await cluster.all_see("n1", "n2")
        with pytest.raises(AlreadyExists, match="named 'n2' is in the cluster already"):
            await cluster.join("n2")


async def test_a_node_that_was_told_to_drain_gets_no_more_work() -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1", Answers)
        await cluster.join("n2", Answers)
        await cluster.until("n1", lambda seen: "answers" in seen["n2"].services)
        assert {await first.call("answers.read") for _ in range(10)} == {"n1", "n2"}
        await first.call("cluster.drain", node="n2")
        await cluster.until("n1", lambda seen: seen["n2"].state == "draining")
        assert {await first.call("answers.read") for _ in range(10)} == {"n1"}
        assert await first.call("answers.own@n2") == "n2"


async def test_a_node_that_was_taken_for_dead_asks_elsewhere_and_is_not_told_that_it_lacks_rights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1", Answers)
        second = await cluster.join("n2", Answers)
        await cluster.until("n2", lambda seen: "answers" in seen["n1"].services)
        door = first.kernel.instance("cluster").service._door
        monkeypatch.setattr(door, "_is_buried", lambda node, life: True)
        door.end_node("n2", "this node is dead, as the others see it")

        async def refused() -> Unavailable:
            while True:
                try:
                    await second.call("answers.own@n1")
                except Unavailable as error:
                    if "the link" not in error.message:  # what went over the one that was there, ends with that
                        return error

        error = await asyncio.wait_for(refused(), 10)
        assert "has taken this one for dead" in error.message
        assert error.may_have_run is False
        assert {await second.call("answers.read") for _ in range(10)} == {"n2"}


async def test_a_node_that_is_removed_leaves() -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1")
        second = await cluster.join("n2")
        await cluster.all_see("n1", "n2")
        await first.call("cluster.remove", node="n2")
        await asyncio.wait_for(second.kernel.shutdown_requested.wait(), 10)


async def test_what_comes_and_goes_is_told() -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1")
        async with first.subscribe("cluster.*") as events:
            await cluster.join("n2")
            event = await anext(events)
            assert (event.subject, event.body.node) == ("cluster.alive", "n2")
            await cluster.stop("n2")
            assert (await anext(events)).subject == "cluster.left"


async def test_a_node_that_comes_again_has_a_higher_incarnation(tmp_path: Path) -> None:
    async with clustered() as cluster:
        await cluster.found("n1")
        await cluster.join("n2", root=tmp_path)
        before = (await cluster.until("n1", lambda seen: "n2" in seen))["n2"].incarnation
        await cluster.stop("n2")
        await cluster.join("n2", root=tmp_path)
        seen = await cluster.until("n1", lambda seen: seen["n2"].state == "alive")
        assert seen["n2"].incarnation > before


async def test_a_node_comes_back_without_a_token_as_the_member_that_it_was(tmp_path: Path) -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1")
        await cluster.join("n2", root=tmp_path)
        await cluster.stop("n2")
        url = (await first.call("cluster.invite")).url
        await cluster._boot("n2", (), {"cluster": {"join": (url,)}}, joins=True, root=tmp_path)
        await cluster.all_see("n1", "n2")


async def test_beyond_this_machine_links_are_encrypted_and_nodes_show_certificates() -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1", Maths, cluster={"host": "0.0.0.0", "advertise": "127.0.0.1"})
        second = await cluster.join("n2", Maths, cluster={"host": "0.0.0.0", "advertise": "127.0.0.1"})
        await cluster.all_see("n1", "n2")
        seen = await cluster.until("n2", lambda seen: "maths" in seen["n1"].services)
        assert {node.address.partition(":")[0] for node in seen.values()} == {"wss"}
        assert (await second.call("maths.add", a=1, b=2)).total == 3
        secret = first.kernel.instance("cluster").service._entry.standing.secret
        stranger = NodeLink(seen["n1"].address, Passport("n3", 1).text(secret), second_context(second))
        with pytest.raises(Unauthenticated, match="certificate"):
            await stranger.start()  # the secret alone, or under another's name, is not enough
        await stranger.aclose()


async def test_a_node_that_was_removed_is_let_in_by_no_other_though_its_certificate_is_good() -> None:
    async with clustered() as cluster:
        here = {"host": "0.0.0.0", "advertise": "127.0.0.1"}
        first = await cluster.found("n1", cluster=here)
        second = await cluster.join("n2", cluster=here)
        third = await cluster.join("n3", cluster=here)
        await cluster.all_see("n1", "n2", "n3")
        with pytest.raises(PreconditionFailed, match="by the node that lets them in"):
            await second.call("cluster.remove", node="n3")
        await first.call("cluster.remove", node="n3")
        service = third.kernel.instance("cluster").service
        for node in ("n1", "n2"):
            address = (await cluster.until("n1", lambda seen: True))[node].address
            text = Passport("n3", 99).text(service._entry.standing.secret)
            link = NodeLink(address, text, service._entry.expected(node))
            with pytest.raises(MicrokernelError, match="does not let this client in"):
                await link.start()
            await link.aclose()


def second_context(node: TestKernel) -> Expected:
    return node.kernel.instance("cluster").service._entry.encryption.expected("n1")


async def test_a_certificate_is_renewed_while_links_go_on() -> None:
    async with clustered() as cluster:
        here = {"host": "0.0.0.0", "advertise": "127.0.0.1"}
        first = await cluster.found("n1", Maths, cluster=here)
        second = await cluster.join("n2", Maths, cluster=here)
        await cluster.until("n2", lambda seen: "maths" in seen["n1"].services)
        for node in (second, first):
            service = node.kernel.instance("cluster").service
            before = service._entry.encryption._credentials.serial
            await service._entry.renew(service._others())
            assert service._entry.encryption._credentials.serial != before
        assert (await second.call("maths.add", a=1, b=2)).total == 3
        await second.kernel.router.nodes.get("n1").aclose()  # and a new link is opened with the new ones
        assert (await second.call("maths.add", a=1, b=2)).total == 3


async def test_a_token_for_this_machine_alone_is_not_sent_to_another_one() -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1")
        token = (await first.call("cluster.invite")).token
        with pytest.raises(MicrokernelError, match="for nodes of one machine"):
            await cluster._boot("n2", (), {"cluster": {"join": ("10.1.2.3:7071",), "token": token}}, joins=True)


def secret_in(folder: Path, text: str | None = None) -> str:
    file = folder / "join"
    file.write_text(text or secrets.token_hex(32))
    return str(file)


BEYOND = {"host": "0.0.0.0", "advertise": "127.0.0.1"}


async def test_with_the_same_join_secret_nodes_join_beyond_this_machine_without_an_invitation(tmp_path: Path) -> None:
    async with clustered() as cluster:
        own = {**BEYOND, "join_secret": secret_in(tmp_path)}
        first = await cluster.found("n1", cluster=own)
        url = (await first.call("cluster.invite")).url
        await cluster._boot("n2", (), {"cluster": {**own, "join": (url,)}}, joins=True)
        await cluster._boot("n3", (), {"cluster": {**own, "join": (url,)}}, joins=True)
        await cluster.all_see("n1", "n2", "n3")


async def test_on_one_machine_the_join_secret_lets_in_as_well(tmp_path: Path) -> None:
    async with clustered() as cluster:
        own = {"join_secret": secret_in(tmp_path)}
        first = await cluster.found("n1", cluster=own)
        url = (await first.call("cluster.invite")).url
        await cluster._boot("n2", (), {"cluster": {**own, "join": (url,)}}, joins=True)
        await cluster.all_see("n1", "n2")


@pytest.mark.parametrize("where", [{}, BEYOND])
async def test_with_another_join_secret_nobody_comes_in(tmp_path: Path, where: dict[str, str]) -> None:
    async with clustered() as cluster:
        first = await cluster.found("n1", cluster={**where, "join_secret": secret_in(tmp_path)})
        url = (await first.call("cluster.invite")).url
        other = {**where, "join_secret": secret_in(tmp_path), "join": (url,)}
        with pytest.raises(Unauthenticated):
            await cluster._boot("n2", (), {"cluster": other}, joins=True)


async def test_the_join_secret_is_no_token_for_anything_else(tmp_path: Path) -> None:
    async with clustered() as cluster:
        own = {"join_secret": secret_in(tmp_path)}
        first = await cluster.found("n1", Maths, cluster=own)
        link = NodeLink(
            place_of((await first.call("cluster.invite")).url).url, read_join_secret(tmp_path / "join").token()
        )
        await link.start()
        try:
            for target in ("maths.add", "cluster.list", "cluster.probe", "kernel.shutdown"):
                with pytest.raises(Denied):
                    await link.forward(target, {}, Call(caller="test"), Any)
        finally:
            await link.aclose()


async def test_a_node_that_has_joined_lets_nobody_in_by_the_secret(tmp_path: Path) -> None:
    async with clustered() as cluster:
        own = {"join_secret": secret_in(tmp_path)}
        first = await cluster.found("n1", cluster=own)
        url = (await first.call("cluster.invite")).url
        await cluster._boot("n2", (), {"cluster": {**own, "join": (url,)}}, joins=True)
        seen = await cluster.until("n1", lambda seen: "n2" in seen)
        with pytest.raises(Unauthenticated):
            await cluster._boot("n3", (), {"cluster": {**own, "join": (seen["n2"].address,)}}, joins=True)


async def test_a_changed_join_secret_holds_from_the_next_boot_on_and_members_stay_members(tmp_path: Path) -> None:
    async with clustered() as cluster:
        own = {**BEYOND, "port": 0, "join_secret": secret_in(tmp_path)}
        root = tmp_path / "n2"
        first_root = tmp_path / "n1"
        await cluster._boot("n1", (), {"cluster": own}, joins=False, root=first_root)
        url = (await cluster.nodes["n1"].call("cluster.invite")).url
        joining = {**own, "join": (url,)}
        await cluster._boot("n2", (), {"cluster": joining}, joins=True, root=root)
        await cluster.stop("n1")
        fresh = {**own, "port": place_of(url).port, "join_secret": secret_in(tmp_path)}
        await cluster._boot("n1", (), {"cluster": fresh}, joins=False, root=first_root)
        await cluster.all_see("n1", "n2")
        await cluster._boot(
            "n3", (), {"cluster": {**BEYOND, "join": (url,), "join_secret": fresh["join_secret"]}}, joins=True
        )
        await cluster.all_see("n1", "n2", "n3")


async def test_a_node_waits_for_the_one_that_is_to_let_it_in(tmp_path: Path, unused_tcp_port: int) -> None:
    async with clustered() as cluster:
        own = {"join_secret": secret_in(tmp_path)}
        joining = {**own, "join": (f"127.0.0.1:{unused_tcp_port}",), "join_seconds": 30.0}
        async with asyncio.TaskGroup() as group:
            group.create_task(cluster._boot("n2", (), {"cluster": joining}, joins=True))
            await asyncio.sleep(0.1)
            group.create_task(cluster.found("n1", cluster={**own, "port": unused_tcp_port}))
        await cluster.all_see("n1", "n2")


async def test_without_patience_a_node_says_at_once_that_nobody_answers(tmp_path: Path, unused_tcp_port: int) -> None:
    async with clustered() as cluster:
        joining = {"join_secret": secret_in(tmp_path), "join": (f"127.0.0.1:{unused_tcp_port}",)}
        with pytest.raises(Unavailable):
            await cluster._boot("n2", (), {"cluster": joining}, joins=True)


async def test_a_node_whose_cluster_is_lost_joins_the_one_that_began_anew_with_the_same_secret(tmp_path: Path) -> None:
    async with clustered() as cluster:
        own = {**BEYOND, "join_secret": secret_in(tmp_path)}
        url = (await (await cluster.found("n1", cluster=own)).call("cluster.invite")).url
        joining = {**own, "join": (url,)}
        await cluster._boot("n2", (), {"cluster": joining}, joins=True, root=tmp_path / "n2")
        await cluster.all_see("n1", "n2")
        await cluster.stop("n2")
        await cluster.stop("n1")
        await cluster.found("n1", cluster={**own, "port": place_of(url).port})  # on an empty folder
        await cluster._boot("n2", (), {"cluster": joining}, joins=True, root=tmp_path / "n2")
        await cluster.all_see("n1", "n2")
