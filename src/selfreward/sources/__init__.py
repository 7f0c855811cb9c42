"""Seed sources: files of people's data in any of the common shapes -> a stream of records. No torch, no stage."""

from selfreward.sources.prompts import read_prompts
from selfreward.sources.read import read_source
from selfreward.sources.records import Reading, Record, Role, Split

__all__ = ["Reading", "Record", "Role", "Split", "read_prompts", "read_source"]
