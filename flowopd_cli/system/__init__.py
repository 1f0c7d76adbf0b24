"""Services of the machine: files, paths, processes, threads; independent of the method."""
