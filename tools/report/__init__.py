"""One page that shows what a whole run did: numbers from its files, and pictures beside them."""
