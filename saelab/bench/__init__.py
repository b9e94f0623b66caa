"""Benchmarks: how fast this machine trains, selects, reads and writes."""
