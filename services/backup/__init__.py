"""The archive of all that a node keeps: made of what the services give, and taken apart for them again."""
