"""A private server for the models that recipes made: OpenAI's protocol, a web page, nothing that leaves the machine."""
