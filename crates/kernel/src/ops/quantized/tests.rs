//! Golden blocks.
