"""The one exception that stands for a mistake a user can mend."""


class UserError(Exception):
    """A problem in what the user gave: a recipe field, a file, a name.

    Its text is one clear line (or a few) that names the field or file, what was wrong with it and the
    remedy. The command line prints it on stderr without a traceback and exits with 2.
    """
