"""The paper's ablations: their rows, the runs behind them and the pages that show them."""
