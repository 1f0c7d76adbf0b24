"""Recorders and progress reporters for tests."""

from flowopd_cli.system.progress import Silent
from flowopd_cli.train.recorder import NullRecorder


class Recorder(NullRecorder):
    """``Recorder(row=rows.append)`` collects rows; other methods do nothing."""

    def __init__(self, **methods):
        vars(self).update(methods)


class Notes(Silent):
    """Collects the notes."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class StopAt(Silent):
    """Interrupts after a number of batches."""

    def __init__(self, last):
        self.left = last

    def step(self, row):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


class Fixed:
    """A reader of texts that gives the same readings for any pictures."""

    name = "fixed"

    def __init__(self, *readings):
        self.readings = readings

    def __call__(self, images):
        return list(self.readings)
