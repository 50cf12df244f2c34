"""The pages of a report and of a comparison: what their script is told, plots, tables."""
