"""Evaluation suites: prompts, a reward and an aggregation, versioned together."""
