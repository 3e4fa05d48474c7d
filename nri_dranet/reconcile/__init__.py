"""Devices into sandboxes and back, and the comparison of journal, kernel and runtime that keeps this true."""
