"""What stands between people and a session: lazy loading, the page's feed, the command line."""
