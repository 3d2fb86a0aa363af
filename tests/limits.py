"""The one limit of tests that wait for something.

Invariant: no test depends on the speed of a machine. A limit here ends a test that hangs, nothing else, so it is ten
times and more what the slowest of them takes on two slow cores.
"""

HANG_S = 1800.0
"""Seconds after which what a test waits for is taken not to come."""
