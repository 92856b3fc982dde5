"""What a run showed: tables, pages, comparisons with intervals, and whether it reproduces."""
