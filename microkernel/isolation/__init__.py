"""Where a service runs: in its caller's task, in tasks, a thread or a process of its own; its code is the same."""
