"""Benchmarks: the same work by fastbp and its peers, each in a process of its own. `python -m bench --help`."""
