"""The parts of ``eval``: requests, pictures, scores and results."""
