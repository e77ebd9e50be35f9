"""The local record of runs: ``store`` writes it, ``read`` reads one run, ``catalog`` finds and tabulates many.

``walk`` finds them, ``same`` says which folders hold one run, ``groups`` what a group holds beside, and ``rows`` reads
them for the catalog; an ``index`` in each group lets this be done once.

Each run has one folder. Neither torch nor hydra is imported here, so that notebooks and status commands start fast.
"""
