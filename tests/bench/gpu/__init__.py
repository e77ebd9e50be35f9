"""What a GPU gives: ``python -m tests.bench.gpu`` (see ``__main__``)."""
