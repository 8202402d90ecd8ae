"""The report: figures, tables, galleries and verdicts, as HTML, Markdown and plain text."""
