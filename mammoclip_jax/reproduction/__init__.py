"""Ours beside the published: configs of a paper's rows (configs/reproduce), what is at hand, runs, and the table."""
