"""How weights are held sparse: what touches them, their gradients and their optimizer state."""
