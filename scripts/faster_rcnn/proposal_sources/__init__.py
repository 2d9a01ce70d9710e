"""Sources of region proposals: `sources.propose_for` makes a table, `table.WithProposals` adds it to a data set."""
