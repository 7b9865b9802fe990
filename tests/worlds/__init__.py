"""Worlds for tests: warehouses of their own, small adversarial inputs, and what must come of them."""
