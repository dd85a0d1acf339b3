"""What browsers get: the page of the gateway, the page that `rill page` writes, and what both share."""
