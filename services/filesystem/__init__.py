"""One tree of names: live state, and files."""
