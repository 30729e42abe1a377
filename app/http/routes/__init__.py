"""HTTP: each route takes a request apart, calls the stages, and puts the answer together."""
