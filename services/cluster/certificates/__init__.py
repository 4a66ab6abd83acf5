"""Who is who between nodes: an authority of the cluster's own, its certificates, and the TLS that checks them.

Plain classes and functions. Those that take a path or a folder read and write files and block: a service calls them by
`asyncio.to_thread`.
"""
