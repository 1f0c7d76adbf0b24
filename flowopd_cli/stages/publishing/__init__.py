"""The parts of ``push``: card, folder, verification and upload."""
