"""From an immunohistochemistry slide to a Ki67 index that can be trusted and checked."""

__version__ = "0.1.0"
