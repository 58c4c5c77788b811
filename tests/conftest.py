"""Fixtures that tests of every wing may ask for. Shared parts of runs lie in ``parts.py``."""
