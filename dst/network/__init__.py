"""Any torch network, seen from outside: where its weights are, and copies of it."""
