"""The page of `ptl watch`: a run as it goes on, or as it went. It reads files, and changes none."""
