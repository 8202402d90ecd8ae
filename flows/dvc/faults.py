"""Which failures are worth another try: S3, the Prefect server and the network being away, nothing
else.
"""

import re

# botocore's, aiohttp's, httpx's, s3fs' and the resolver's words for a server that is away, busy or
# cut off; not for a missing key, a refused one, or credentials that are not there, which our own
# lines (tasks/store/s3.py) may hold as well.
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


def is_network_fault(text: str) -> bool:
    """Whether the last lines of a command, or an error, speak of S3 or the network being away."""
    return bool(_FAULT.search(text))
