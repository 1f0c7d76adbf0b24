"""DPG-Bench: its rules, and its judges behind a worker or an endpoint."""
