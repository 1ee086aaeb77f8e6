"""The exceptions that the command lines turn into a single line, and the exit codes of all."""


class InputError(ValueError):
    """Something that the user gave is wrong; the message names the file, the line and the remedy."""


class TerminatedError(BaseException):
    """SIGTERM has arrived."""


def first_line_of(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if there is none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a script that an error ends."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    codes = {KeyboardInterrupt: 130, TerminatedError: 143, BrokenPipeError: 141, InputError: 2, OSError: 2}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), 1)
