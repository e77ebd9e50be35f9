"""Tables and figures from the records of runs: ``tables``, ``plots``, and the notebooks that use them."""
