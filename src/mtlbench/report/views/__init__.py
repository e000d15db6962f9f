"""What the tables of the report look like: terminal, Markdown, CSV, LaTeX and HTML."""
