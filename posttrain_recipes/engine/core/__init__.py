"""The service behind the routes: request handlers, the scheduler, futures and the state."""
