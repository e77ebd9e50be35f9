"""From the command lines of the published codes to ours: ``python -m dst.legacy [--from PAPER] [--as-run] COMMAND``."""
