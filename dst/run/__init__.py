"""One run: its parts, its attempts, whether it can be continued, what it will cost, and reports about it."""
