"""Finds the servers that the configuration names, and no others."""

from __future__ import annotations

from collections.abc import Sequence

from drivers.upstream.server import Server
from drivers.upstream.settings import DRIVER, UpstreamSettings, checked
from microkernel.driver import Driver
from microkernel.model_server import ModelServer

__all__ = ["UpstreamDriver"]


class UpstreamDriver(Driver):
    """OpenAI-compatible servers as devices."""

    name = DRIVER
    Settings = UpstreamSettings
    settings: UpstreamSettings

    def find(self) -> Sequence[ModelServer]:
        """One device for each. Raises `Invalid` that names the key of the configuration."""
        return [Server(server) for server in checked(self.settings).servers]
