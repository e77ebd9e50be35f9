"""One HTML file about the runs below some folders, to mail and to read anywhere: ``python -m analysis.report``."""
