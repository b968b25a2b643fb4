//! The daemon put together: logs, and what serves under them.

pub mod logging;
