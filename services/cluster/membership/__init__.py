"""Who is in the cluster, as one node sees it: a state machine without a loop, a clock or a socket."""
