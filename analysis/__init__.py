"""Tables and figures from the records of runs: ``tables``, ``figures``, and the notebooks that use them."""
