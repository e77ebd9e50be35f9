"""What is measured about a run; measuring never changes training."""
