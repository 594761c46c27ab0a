//! What can be done to collections.
