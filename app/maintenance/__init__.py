"""Commands on a gallery."""
