"""The comparison of a study in a tracking tool: what the end of a bench adds, and how a dashboard shows it."""
