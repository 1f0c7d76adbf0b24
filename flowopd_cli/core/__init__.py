"""Tensors in, tensors out: no files, no network, no logging, no diffusers."""
