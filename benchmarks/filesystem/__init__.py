"""The tree: large files against cp and cat, small durable ones against plain files, names by the million, search."""
