"""Between the HTTP edge and the engines: waiting tasks, estimates of their pace, and the threads that work on them."""
