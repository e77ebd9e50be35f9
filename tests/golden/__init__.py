"""Proof that a change leaves results alone: every method by the code of another commit and by today's, bit by bit."""
