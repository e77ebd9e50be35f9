"""What a run is: every key and its type, how overrides become a config, what is wrong with one, and the run id."""
