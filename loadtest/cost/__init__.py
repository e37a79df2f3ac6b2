"""`shoal cost`: what a rate that was measured costs, on machines and beside APIs whose prices are known."""
