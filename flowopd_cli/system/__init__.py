"""What the machine provides: files, paths, processes, threads. Nothing of the method."""
