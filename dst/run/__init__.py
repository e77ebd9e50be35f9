"""One run: what it is built of, its attempts, whether it may go on, what it will cost, and what is said of it."""
