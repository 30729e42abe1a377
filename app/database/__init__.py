"""Transactions, and what each database does its own way."""
