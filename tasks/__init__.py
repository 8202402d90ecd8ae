"""One unit of work per stage: read parameters and inputs, call `gdpo`, write outputs. Also the command line."""
