"""How a stage fails, and which failures are retried: S3, the Prefect server or the network is
unreachable; no others.
"""

import re

# Messages of botocore, aiohttp, httpx, s3fs and the resolver for a server that is unreachable or
# busy, or whose connection broke. Messages about a missing or refused key, or about missing
# credentials, must not match; the lines of tasks/store/s3.py report those too.
_FAULT = re.compile(
    r"could not connect|cannot connect to host|failed to connect to proxy|connect ?error|endpoint "
    r"?connection ?error"
    r"|all connection attempts failed|max retries exceeded|failed to establish a (new )?connection"
    r"|connection (was closed|closed|reset|refused|aborted|broken|timed out)|server "
    r"?disconnected|broken pipe"
    r"|(connect(ion)?|read) ?time(d )?-?out|operation timed out|request ?time-?out\b|gateway "
    r"?time-?out|bad ?gateway"
    r"|network is unreachable|no route to host|name or service not known|temporary failure in "
    r"name resolution"
    r"|slow ?down|throttl|too ?many ?requests|request ?limit ?exceeded|reduce your request rate"
    r"|service ?unavailable|internal ?(server ?)?error|\(50[0234]\)|status(?: code)?:? ?50[0234]"
    r"|incompleteread|read, but total bytes expected|while reading from response stream|content "
    r"?length ?error"
    r"|payload is not completed",
    re.IGNORECASE,
)


class StageFailed(RuntimeError):
    """A dvc command or a check before it failed; the message has the command's last lines."""


class StageBroke(StageFailed):
    """Failure after the stage started; never retried."""


def is_network_fault(text: str) -> bool:
    """Whether a command's last lines, or an error's text, report S3 or the network unreachable."""
    return bool(_FAULT.search(text))
