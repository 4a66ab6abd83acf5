"""What a cluster costs, and how soon all of it knows."""
