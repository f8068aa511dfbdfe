"""Trained models for programs without Python.

``program``  a model as a program of one frame, and the cases that its export is compared with
``c``        plain C99: a header and a source
"""
