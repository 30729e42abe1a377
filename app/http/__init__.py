"""HTTP requests to answers."""
