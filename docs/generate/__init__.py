"""Writes the parts of the documents that code knows, and gathers the pages of the site."""
