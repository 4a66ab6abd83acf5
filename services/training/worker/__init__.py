"""What runs in a worker's process: the steps of a job, and the sums over all workers."""
