"""Text for messages that a person reads: on one line, and safe on a terminal."""


def one_line(error: BaseException, *, first: bool = False) -> str:
    """The error's message with line breaks and runs of blanks as one blank.

    first: only the first line with text. The further lines of torch's and diffusers' errors are
    lists of tensors, or advice to load files unsafely. An error without a message gives the name of
    its type.
    """
    lines = str(error).strip().splitlines()
    return " ".join(" ".join(lines[:1] if first else lines).split()) or type(error).__name__


def shown(text: object) -> str:
    """Text that is safe on a terminal: control characters and undecodable bytes are escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text)
    )
