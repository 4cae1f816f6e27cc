"""What depends on where we compute: replicas, random state, eager shortcuts, devices."""
