"""What lives while the service runs."""
