"""A run on disk: its folder, its checkpoints, its rows of metrics, and the threads it may use."""
