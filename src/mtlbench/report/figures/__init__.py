"""Figures of the report, one file per part of the page."""
