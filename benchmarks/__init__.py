"""Measurements that anyone can repeat; nothing here is part of the package, and nothing timed is a test."""
