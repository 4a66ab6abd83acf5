"""Speaks to the world: the OpenAI API, websockets and health, on one port."""
