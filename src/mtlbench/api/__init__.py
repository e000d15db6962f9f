"""What scripts and notebooks call: a bench, and its results as pandas frames, plotly figures and text for papers."""
