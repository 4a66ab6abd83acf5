"""The wire, `mk.v1`: one websocket protocol for browsers, Python clients and, later, links between nodes."""
