"""The house around the code: what is installed, committed, cited."""
