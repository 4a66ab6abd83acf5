"""What has happened on this node."""
