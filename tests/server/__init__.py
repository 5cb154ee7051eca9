"""Tests of the receiving side."""
