"""The built-in services, one folder each; they meet in messages and never import each other."""
