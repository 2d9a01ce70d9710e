"""Between the HTTP edge and the engines: waiting tasks, batches, deadlines."""
