"""The volume that keeps every version: names in SQLite, contents by what is in them."""
