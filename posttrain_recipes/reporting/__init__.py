"""Reporting: result tables, pages, comparisons with confidence intervals, reproduction."""
