"""A remote directory for tests: file:// URLs, registered with etils.epath as other kinds of directories are.

To zoo they are remote, for they read as URLs; behind them lies the local disk, so that Orbax writes its arrays. What
zoo itself does with them has to go through the path's own methods, as in an object store: an attempt to use one as
the name of a local file (os, shutil, open) raises.
"""

import sys

from etils import epath
from etils.epath import gpath

_STANDARD_LIBRARY = ("os", "shutil", "pathlib", "posixpath", "genericpath", "fnmatch", "glob", "tempfile", "io")


@epath.register_path_cls("file://")
class FileURL(gpath.PosixGPath):
    """file:///a/b"""

    def __new__(cls, *parts):
        names = [part._path_str if isinstance(part, FileURL) else str(part) for part in parts]
        return super().__new__(cls, *(name.removeprefix("file://") for name in names))

    def __init__(self, *parts):
        if sys.version_info >= (3, 12):
            names = [part._path_str if isinstance(part, FileURL) else str(part) for part in parts]
            super().__init__(*(name.removeprefix("file://") for name in names))

    def __str__(self):
        return "file://" + self._path_str

    def __fspath__(self):
        frame = sys._getframe(1)
        while frame.f_globals["__name__"].partition(".")[0] in _STANDARD_LIBRARY:
            frame = frame.f_back
        if frame.f_globals["__name__"].partition(".")[0] == "zoo":
            raise TypeError(f"{self} is no local file")
        return self._path_str

    def as_posix(self):
        return self._path_str
