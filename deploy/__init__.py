"""What runs Shoal beyond one process: images, compose files, rules, dashboards, and configs that are made."""
