"""Scoring workers: rewards in another process or on another machine, their server and their client.

``protocol``, ``settings``, ``batching`` and ``server`` import nothing of flowopd but ``errors``, and no torch: they are
copied into the environments of isolated workers.
"""
