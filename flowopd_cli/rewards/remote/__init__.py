"""Rewards in another process or on another machine: their server and their client.

``protocol``, ``settings``, ``batching`` and ``server`` import no torch and nothing of flowopd but ``errors``: they are
copied into the environments of isolated workers.
"""
