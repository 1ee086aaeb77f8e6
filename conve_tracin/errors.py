"""The one exception that the command lines turn into a single line and exit code 2."""


class InputError(ValueError):
    """Something that the user gave is wrong; the message names the file, the line and the remedy."""
