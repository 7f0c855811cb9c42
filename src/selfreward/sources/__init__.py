"""Seed sources: files of people's data in any of the common shapes -> a stream of records. No torch, no stage."""
