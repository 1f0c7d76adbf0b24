"""Collecting experience, turning it into losses, and the one loop."""
