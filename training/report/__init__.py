"""What a run shows to people: figures, the hardest pairs, and the page that shows them."""
