"""Leadership: of several processes of one kind, one works and the others stand by (leader election)."""
