"""Locust users on Shoal's own clients, and reports of what they saw."""
