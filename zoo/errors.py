"""The exception for a mistake that the user can mend."""

from zoo.terminal import visible


class UserError(Exception):
    """A problem in what the user gave: a recipe field, a file, a name.

    Its text is one clear line (or a few) that names the field or file, what is wrong with it and the remedy. The
    command line prints it on stderr without a traceback and exits with 2. Names and values in it come from files, so
    control characters in it are shown as \\u001b is.
    """

    def __str__(self) -> str:
        return visible(super().__str__())
