"""Servers that speak OpenAI's HTTP API, each a device that answers by itself."""
