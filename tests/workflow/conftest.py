from stubbed_checkout import finished, fresh

__all__ = ["finished", "fresh"]
