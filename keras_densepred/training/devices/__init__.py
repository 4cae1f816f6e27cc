"""Training on several devices and in several processes, by each backend's own means."""
