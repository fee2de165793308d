"""Documents of users: uploads, parsing in a sandbox, and what is found in them."""
