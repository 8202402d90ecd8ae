"""The text of an error on one line, for messages that a person reads."""


def one_line(error: BaseException, *, first: bool = False) -> str:
    """The error's message with line breaks and runs of blanks as one blank.

    first: only the first line with text. The further lines of torch's and diffusers' errors are
    lists of tensors, or advice to load files unsafely. An error without a message gives the name of
    its type.
    """
    lines = str(error).strip().splitlines()
    return " ".join(" ".join(lines[:1] if first else lines).split()) or type(error).__name__
