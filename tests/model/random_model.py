"""Constants of the random checkpoint of conftest.py."""

VOCABULARY = 96
