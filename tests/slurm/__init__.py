"""Tests on a real SLURM of one machine."""
