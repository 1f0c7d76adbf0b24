"""The parts of a report: curves, pictures, tables, the page. No torch, no network."""
