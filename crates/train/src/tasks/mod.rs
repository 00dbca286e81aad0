//! The tasks that come with the engine.

pub mod lm;
pub mod recall;
