"""Packages of attackers: opened in a process of bounded memory and time."""
