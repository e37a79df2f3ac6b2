"""`shoal tune`: the setting of a proven version that keeps a promise at the highest rate, on this machine."""
