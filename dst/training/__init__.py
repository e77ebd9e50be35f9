"""Training: the loop, what it optimises with, its guards, checkpoints and interruption."""
