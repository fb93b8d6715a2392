"""Joins the rooms: the order of a run, from command line to metric."""
