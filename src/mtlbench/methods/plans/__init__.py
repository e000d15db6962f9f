"""Methods whose plan trains several runs."""
