"""Services to measure beside: what one would install or write instead, with the same encoder."""
