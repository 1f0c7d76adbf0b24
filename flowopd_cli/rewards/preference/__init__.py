"""Learned preference and similarity scores."""
