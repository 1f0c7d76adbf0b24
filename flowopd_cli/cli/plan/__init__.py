"""From flags and files to a plan that can run: names completed, adapters read, everything checked."""
