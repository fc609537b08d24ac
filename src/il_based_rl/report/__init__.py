"""What runs have come to, to look at: lists, curves, videos, and the page that holds them all."""
