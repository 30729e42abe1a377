"""The service: bytes -> image -> embedding -> distance -> verdict."""
