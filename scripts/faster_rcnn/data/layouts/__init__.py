"""Where the files of a data set are: one module for each family of layouts, and the search for the one that fits."""
