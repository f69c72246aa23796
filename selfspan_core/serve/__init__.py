"""Between users and a session: lazy loading, the page's feed, the API, the command line."""
