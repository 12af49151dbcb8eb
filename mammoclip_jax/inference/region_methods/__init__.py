"""Ways to find the regions of a data set with a trained model; those without one are in data/regions."""
