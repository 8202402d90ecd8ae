"""Parameters and multiply-accumulates of the networks, counted on shapes alone."""
