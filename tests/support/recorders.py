"""A recorder of which a test replaces some methods."""

from flowopd_cli.train.recorder import NullRecorder


class Recorder(NullRecorder):
    """``Recorder(row=rows.append)`` collects rows; other methods do nothing."""

    def __init__(self, **methods):
        vars(self).update(methods)
