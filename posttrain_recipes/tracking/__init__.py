"""Where runs are kept to be browsed: MLflow, always here, and on a server where one is named."""
