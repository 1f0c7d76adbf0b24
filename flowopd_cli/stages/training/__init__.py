"""Shared parts of the three training stages."""
