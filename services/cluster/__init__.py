"""Many nodes that act as one."""
