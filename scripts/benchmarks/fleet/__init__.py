"""Several replicas of the service behind HAProxy: what the balancer costs, and what drains, kills and rollouts lose."""
