"""The local record of runs: ``store`` writes it, ``read`` reads one run, ``catalog`` finds and tabulates many.

One folder a run; its files are the contract of DESIGN.md section 5. Neither torch nor hydra is imported here, so that
notebooks and status commands start fast.
"""
