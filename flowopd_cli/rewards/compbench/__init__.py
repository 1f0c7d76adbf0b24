"""The judges of T2I-CompBench."""
