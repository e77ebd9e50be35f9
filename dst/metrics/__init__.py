"""The figures of a run; measuring them never changes training."""
