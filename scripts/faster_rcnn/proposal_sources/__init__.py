"""Where region proposals come from: `sources.propose_for` makes a table of them, `table.WithProposals` trains on it."""
