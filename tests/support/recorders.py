"""A recorder of which a test replaces some methods."""

from flowopd_cli.train.loop import NullRecorder


class Recorder(NullRecorder):
    """``Recorder(row=rows.append)`` collects rows; other methods do nothing."""

    def __init__(self, **methods):
        vars(self).update(methods)
