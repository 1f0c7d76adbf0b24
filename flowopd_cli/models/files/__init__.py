"""What the files of bases and adapters say, read without torch."""
