"""The queue between the HTTP edge and the engines: waiting tasks, time estimates, and worker threads."""
