"""Sweeps on other processes and machines: frozen runs, submitted as jobs, watched, cancelled, continued, synced."""
