"""The ports that a session calls through: its own, and those of the users on whose behalf another node calls."""

from __future__ import annotations

from microkernel.capability import ALL, Identity
from microkernel.errors import Denied
from microkernel.port import Port

__all__ = ["Ports"]

MOST_USERS = 256  # of whom a node's session keeps ports, which remember what they are bound to


class Ports:
    """What one client may call, and as whom.

    A node is trusted with the names of its users: their rights were looked at where they came in. Nobody else is.
    """

    def __init__(self, port: Port, identity: Identity, session: str) -> None:
        """`port` is narrowed to what `identity` may do; a node acts for itself where it names no user."""
        node = identity.node
        self._caller = f"session {session}" if node is None else f"node {node}"
        self._node = node
        self._users: dict[str, Port] = {}
        self.own = port.narrow(
            caller=self._caller,
            rights=identity.rights,
            user=identity.user if node is None else None,
            top_priority=identity.top_priority,
        )

    def of(self, user: str | None) -> Port:
        """The port of `user`, None for the session's own. Raises `Denied` for a client that is no node."""
        if user is None:
            return self.own
        if self._node is None:
            raise Denied("only another node says on whose behalf it calls", may_have_run=False)
        port = self._users.pop(user, None) or self.own.narrow(caller=self._caller, rights=ALL, user=user)
        self._users[user] = port  # at the end: the most recent
        if len(self._users) > MOST_USERS:
            del self._users[next(iter(self._users))]
        return port
