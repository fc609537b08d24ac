"""The document of `benchmarks.improve`, and its figures."""


def write_page(rows):
    """Write it."""
