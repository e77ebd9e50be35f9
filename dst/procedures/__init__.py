"""What the phases of a run are, and what is done between them."""
