"""Which failures are worth another try: S3 and the network, nothing else. A stage that fails, fails once."""

import re

# botocore's, aiohttp's and dvc's words for a server that is away, busy or cut off; not for a missing key or a refused one.
_FAULT = re.compile(
    r"could not connect|connection (was closed|reset|refused|aborted|broken)|(connect(ion)?|read) ?time(d )?-?out"
    r"|endpoint ?connection ?error|server ?disconnected|temporary failure in name resolution|slow ?down|service ?unavailable"
    r"|internal ?(server ?)?error|incompleteread|cannot be reached|broke off"
    r"|request ?timeout|cannot connect to host|\(50[0234]\)|status(?: code)?:? ?50[0234]|content ?length ?error"
    r"|payload is not completed|broken pipe",
    re.IGNORECASE,
)


def is_network_fault(text: str) -> bool:
    """Whether the last lines of a command speak of S3 or the network being away."""
    return bool(_FAULT.search(text))
