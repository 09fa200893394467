"""How long should each expert train, if it is going to be merged, and with which method?"""

__version__ = "0.1.0"
