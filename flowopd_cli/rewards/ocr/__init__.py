"""Text rendering: readers and the edit-distance reward."""
