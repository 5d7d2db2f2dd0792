from stubbed_checkout import finished, fresh, warm

__all__ = ["finished", "fresh", "warm"]
