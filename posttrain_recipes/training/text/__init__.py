"""From messages to tokens and back: chat templates, what is learned of an example, answers."""
