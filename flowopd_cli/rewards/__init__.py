"""Rewards: one file each, a registry row each."""
