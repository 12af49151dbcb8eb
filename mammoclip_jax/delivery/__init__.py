"""What leaves with an exam's prediction, for people and for other programs."""
