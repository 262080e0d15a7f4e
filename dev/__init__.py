"""For developers: the environment, the demo, and what the demo, the tests and the benchmarks share."""
