"""Prompt files, public prompt sets, generated prompts and the sampler of groups."""
