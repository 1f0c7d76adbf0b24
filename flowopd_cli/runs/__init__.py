"""Run directories: what a stage writes, how it is locked, resumed, listed and verified."""
