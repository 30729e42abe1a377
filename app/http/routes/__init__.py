"""The endpoints: each reads a request, calls the stages, and writes the answer."""
