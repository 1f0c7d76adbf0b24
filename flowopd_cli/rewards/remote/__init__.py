"""The server side of a scoring worker. Standard library, PIL and ``flowopd_cli.errors`` only: it is copied as it is
into environments that have neither flowopd nor torch, so that every worker speaks by the same code.
"""
