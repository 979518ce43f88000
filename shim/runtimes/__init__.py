"""What container runtimes say is there, and the attachments released that they do not know any more."""
